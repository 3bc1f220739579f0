"""Attempts: which is under way, what follows when one fails, and when the next one may start."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_operator.api.status import Attempt, Checkpoint, Failure, FineTuneJobStatus
from finetune_operator.decide.decision import Look
from finetune_operator.failure_table import Remedy, consequence_of
from finetune_operator.names import ConditionReason

_FIRST_DELAY = timedelta(seconds=10)
_LONGEST_DELAY = timedelta(minutes=5)


@dataclass(frozen=True)
class Verdict:
    """What follows from a failure."""

    again_at: datetime | None
    """When to try again; None when the job has failed."""
    words: str
    """The same for a person, and what has been saved."""


def under_way(status: FineTuneJobStatus) -> Attempt | None:
    """Return the attempt that has begun and not ended."""
    if status.attempts and status.attempts[-1].ended is None:
        return status.attempts[-1]
    return None


def next_number(status: FineTuneJobStatus) -> int:
    """Return the number of the attempt after the newest one."""
    return status.attempts[-1].number + 1 if status.attempts else 1


def earliest_start(attempts: Sequence[Attempt]) -> datetime | None:
    """Return when the next attempt may start; None when it need not wait: it is the first, or it resumes the job.

    The delay doubles with each failure in a row. An attempt that has saved steps is a fresh start.
    """
    if not attempts or attempts[-1].ended is None or attempts[-1].reason == ConditionReason.SUSPENDED:
        return None
    failures_in_a_row = 0
    for attempt in reversed(attempts):
        if attempt.reason == ConditionReason.SUSPENDED:
            continue
        failures_in_a_row += 1
        if _has_saved_steps(attempt):
            break
    return datetime.fromisoformat(attempts[-1].ended) + _delay(failures_in_a_row)


def earliest_retry(failures: Sequence[Failure]) -> datetime | None:
    """Return when a stage of one pod may start again; None when it did not fail."""
    if not failures:
        return None
    return datetime.fromisoformat(failures[-1].time) + _delay(len(failures))


def verdict_on_attempt(status: FineTuneJobStatus, reason: str, max_restarts: int) -> Verdict:
    """Return what follows when the newest attempt, told to have ended, has ended for this reason."""
    former_reasons = [attempt.reason for attempt in status.attempts[:-1]]
    saved = _saved(status.checkpoint)
    why_no_more = _why_no_more(reason, former_reasons, status.restarts, max_restarts)
    again_at = earliest_start(status.attempts)
    if why_no_more is not None or again_at is None:
        return Verdict(None, " ".join(text for text in (why_no_more, saved) if text))
    whence = f"from the checkpoint of step {status.checkpoint.step}" if status.checkpoint else "from the first step"
    words = (
        f"Attempt {next_number(status)} starts {whence} at {again_at:%H:%M:%S} UTC, or when the last pod of this one "
        "is gone."
    )
    return Verdict(again_at, words)


def verdict_on_one_pod(doing: str, failures: Sequence[Failure], restarts: int, reason: str, look: Look) -> Verdict:
    """Return what follows when a stage of one pod has failed for this reason.

    Args:
        doing: what the stage does, as the beginning of a sentence.
        failures: the earlier times that it failed.
        restarts: how often the job has started anew.
        reason: why it failed now.
        look: the time, and what the job's run policy allows.
    """
    why_no_more = _why_no_more(reason, [failure.reason for failure in failures], restarts, look.policy.max_restarts)
    if why_no_more is not None:
        return Verdict(None, why_no_more)
    again_at = look.now + _delay(len(failures) + 1)
    return Verdict(again_at, f"{doing} starts again at {again_at:%H:%M:%S} UTC, with what is on the disk already.")


def _why_no_more(reason: str, former_reasons: Sequence[str | None], restarts: int, max_restarts: int) -> str | None:
    """Return why a failure is not tried again, or None when it is. What needs no words has an empty text."""
    consequence = consequence_of(reason)
    if consequence.remedy is Remedy.FAIL:
        return ""
    if consequence.remedy is Remedy.RESTART_ONCE and reason in former_reasons:
        return "It was tried again once, and the same happened."
    if restarts >= max_restarts:
        times = "never" if max_restarts == 0 else f"{restarts} times"
        return f"It was started anew {times}, which is what spec.runPolicy.maxRestarts allows."
    return None


def _saved(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return ""
    where = f" in {checkpoint.path} on the shared filesystem" if checkpoint.path else ""
    return f"The checkpoint of step {checkpoint.step} is kept{where}."


def _has_saved_steps(attempt: Attempt) -> bool:
    if attempt.last_step is None or attempt.steps_lost is None:
        return False
    return attempt.last_step - attempt.steps_lost > (attempt.resumed_from_step or 0)


def _delay(failures_in_a_row: int) -> timedelta:
    # NB: the exponent is bounded because a timedelta overflows.
    doublings = min(failures_in_a_row - 1, 16)
    return min(_FIRST_DELAY * (1 << doublings), _LONGEST_DELAY)
