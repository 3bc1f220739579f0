"""What a doctor looks at, and what he finds: the data that `diagnose` goes from and comes to. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from finetune_cli.capacity import Capacity
from finetune_cli.hub_access import Access
from finetune_cli.jobs import Job
from finetune_cli.pods import PodView
from finetune_operator.api.job import FineTuneJob
from finetune_operator.plan import Plan

Body = Mapping[str, Any]


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    UNKNOWN = "unknown"
    """It could not be looked at."""
    WAIT = "wait"
    """It passes by itself."""
    PROBLEM = "problem"
    """Somebody has to do something."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    words: str
    command: str = ""
    """What mends it, or shows more of it."""


@dataclass(frozen=True)
class Unseen:
    """Why something could not be looked at."""

    why: str


@dataclass(frozen=True)
class Seen:
    """What was looked at for one job. A part that could not be seen says why."""

    body: Body
    job: Job
    typed: FineTuneJob
    plan: Plan | None
    """What the operator would do; None where it refuses the job, which its status tells."""
    operators: Sequence[Body] | Unseen
    pods: Sequence[PodView] | Unseen
    warnings: Sequence[Body] | Unseen
    """Events of type Warning in the namespace."""
    claims: Sequence[Body] | Unseen
    storage_classes: Sequence[Body] | Unseen
    secret_keys: frozenset[str] | Unseen | None
    """Tokens that the job's Secret has; None when it does not exist."""
    quotas: Sequence[Body] | Unseen
    capacity: Capacity | Unseen
    hub: Mapping[str, Access]
    """By repository of a model or data set."""
