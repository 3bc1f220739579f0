"""What became of a disturbed job, and the line of it that is kept."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from dev.cluster.layout import CACHE
from tests.e2e.faults.fault import Fault
from tests.e2e.kubectl import JobView

RESULTS = Path(os.environ.get("FINETUNE_FAULT_RESULTS") or CACHE / "fault-results.jsonl")


@dataclass(frozen=True)
class Step:
    """A line of metrics.jsonl."""

    number: int
    ended_at: float  # seconds since 1970


@dataclass(frozen=True)
class Outcome:
    """What is known of a job when it has ended and was deleted.

    Attributes:
        job: as it was told last.
        struck_at: when it was disturbed last, in seconds since 1970; None where it was not.
        steps: those that count, each once: what was done again stands where it was done last.
        attempts_seen: attempts that were seen to have running pods.
        overlaps: times when pods of two attempts ran at once.
        left: objects in its namespace after it was deleted, by kind, beyond those that were there before it.
        events: Events of the job, `reason: message`.
    """

    fault: Fault
    job: JobView
    struck_at: float | None
    steps: Sequence[Step]
    attempts_seen: frozenset[int]
    overlaps: Sequence[str]
    left: dict[str, int]
    events: Sequence[str]

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Its attempts, as the status tells them."""
        return list(self.job.status.get("attempts", []))

    @property
    def reasons(self) -> list[str]:
        """Why each attempt ended."""
        return [attempt.get("reason", "") for attempt in self.attempts]

    @property
    def steps_lost(self) -> int:
        """Steps that had to be done again."""
        return sum(attempt.get("stepsLost", 0) for attempt in self.attempts)

    @property
    def adapter(self) -> str:
        """The digest of its result; empty where it has none."""
        return str(self.job.status.get("result", {}).get("adapterDigest", ""))

    @property
    def seconds_to_recover(self) -> float | None:
        """Time from the disturbance to the first step after it; None where there was neither.

        Of a job that goes on in a new attempt it is the first step of that one; of another, the longest time that it
        stood still after the disturbance.
        """
        if self.struck_at is None or self.job.phase != "Succeeded":
            return None
        if len(self.attempts) > 1:
            resumed_from = self.attempts[-1].get("resumedFromStep", 0)
            first = next(step for step in self.steps if step.number > resumed_from)
            return first.ended_at - self.struck_at
        later = [self.struck_at, *(step.ended_at for step in self.steps if step.ended_at > self.struck_at)]
        return max((after - before for before, after in pairwise(later)), default=0.0)

    def keep(self) -> None:
        """Add the outcome to the file that the table is made of."""
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        seconds = self.seconds_to_recover
        line = {
            "fault": self.fault.what,
            "backend": self.fault.backend,
            "phase": self.job.phase,
            "reasons": self.reasons,
            "seconds_to_recover": None if seconds is None else round(seconds, 1),
            "steps_lost": self.steps_lost,
            "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_steps(metrics: Path) -> list[Step]:
    """Read the steps of a run that has ended; there are none where it never came to train.

    What comes after the last end of a line is half of one: the disk was full.
    """
    if not metrics.exists():
        return []
    whole, _, _ = metrics.read_text(encoding="utf-8").rpartition("\n")
    lines = [json.loads(line) for line in whole.splitlines()]
    return [Step(line["step"], line["timestamp_seconds"]) for line in lines]
