"""What goes into a decision, and what comes out of it."""

from dataclasses import dataclass, replace
from datetime import datetime

from finetune_operator.api.spec import RunPolicy
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.build import Manifest
from finetune_operator.observe import Observed
from finetune_operator.plan import Plan
from finetune_operator.progress import Heard
from finetune_operator.status import Moment
from finetune_operator.workloads import Child

LOOK_AGAIN_SECONDS = 5.0
"""When to look again at what no watch tells of, or what a watch may tell of late."""


@dataclass(frozen=True)
class Timing:
    """How often and for how long, as an administrator set it."""

    progress_interval_seconds: float
    """How often the progress of a running gang is to be read."""
    force_delete_seconds: float
    """How long a pod that was told to go may stay on a node that does not answer."""
    turn_after_seconds: float = 0.0
    """How long it takes until it is this job's turn, among all, to be asked how far it is."""


@dataclass(frozen=True)
class Look:
    """All that a decision rests on, besides the status so far."""

    plan: Plan
    observed: Observed
    moment: Moment
    timing: Timing
    heard: Heard | None
    """What rank 0 of the attempt under way said; None when it was not asked in this round."""

    @property
    def now(self) -> datetime:
        """The time."""
        return self.moment.now

    @property
    def policy(self) -> RunPolicy:
        """How long the job may take, and how often it is tried."""
        return self.plan.job.spec.run_policy


@dataclass(frozen=True)
class Decision:
    """What to do now, what to tell, and when to look again.

    Objects are made before the status is told and deleted after it: what is made is found again by its name, and what
    is deleted takes the reason for it along.
    """

    status: FineTuneJobStatus
    apply: tuple[Manifest, ...] = ()
    delete: tuple[Child, ...] = ()
    force: tuple[Child, ...] = ()
    """Pods to be taken off the record, because nobody is left to take them down."""
    delete_job: bool = False
    """Whether the FineTuneJob itself goes, and with it what it owns."""
    wake_after_seconds: float | None = None
    """None: the watches tell when something changes."""

    def waking_at(self, time: datetime | None, now: datetime) -> "Decision":
        """Return the decision with a wake at this time, unless it wakes earlier anyway."""
        if time is None:
            return self
        seconds = max(0.0, (time - now).total_seconds())
        if self.wake_after_seconds is not None:
            seconds = min(seconds, self.wake_after_seconds)
        return replace(self, wake_after_seconds=seconds)
