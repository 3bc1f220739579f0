"""The Events that tell a job's story: what changed from one status to the next.

Pure. An Event follows from a difference, so each is told once, whoever asks again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from finetune_operator.api.status import Condition, ConditionType, FineTuneJobStatus
from finetune_operator.names import ConditionReason

_MAX_NOTE_CHARACTERS = 1024  # an Event's note may not be longer
_GOOD_REASONS = frozenset(
    {
        ConditionReason.ACCEPTED,
        ConditionReason.PREPARING,
        ConditionReason.PREPARED,
        ConditionReason.QUEUED,
        ConditionReason.STARTING,
        ConditionReason.RUNNING,
        ConditionReason.TRAINED,
        ConditionReason.EVALUATING,
        ConditionReason.EVALUATED,
        ConditionReason.SUSPENDING,
        ConditionReason.SUSPENDED,
        ConditionReason.RESUMED,
        ConditionReason.SUCCEEDED,
        ConditionReason.FORMER_JOB_LEAVING,
        ConditionReason.STORAGE_SUFFICES,
    }
)

# What goes without saying when the other is told: an Event is a request, and a thousand jobs make thousands of them.
_FOLLOWS_FROM: Mapping[str, ConditionReason] = {
    ConditionReason.PREPARING: ConditionReason.ACCEPTED,
    ConditionReason.STARTING: ConditionReason.PREPARED,
}


class EventType(StrEnum):
    """Whether an Event is news or a warning."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True)
class JobEvent:
    """An Event about a job."""

    type: EventType
    reason: str
    note: str


def events_between(old: FineTuneJobStatus, new: FineTuneJobStatus) -> tuple[JobEvent, ...]:
    """Return an Event for each condition whose answer or reason changed, and for what an attempt found."""
    return (*_of_conditions(old, new), *_of_damage(old, new), *_of_resuming(old, new))


def _of_conditions(old: FineTuneJobStatus, new: FineTuneJobStatus) -> tuple[JobEvent, ...]:
    before = {condition.type: (condition.status, condition.reason) for condition in old.conditions}
    changed = [
        condition for condition in new.conditions if before.get(condition.type) != (condition.status, condition.reason)
    ]
    # That a job was resumed comes before what it does then.
    changed.sort(key=lambda condition: condition.type is not ConditionType.SUSPENDED)
    reasons = {condition.reason for condition in changed}
    # Running=False and Failed=True of the same cause are one piece of news.
    told = {
        (condition.reason, condition.message): _event(condition)
        for condition in changed
        if _FOLLOWS_FROM.get(condition.reason) not in reasons
    }
    return tuple(told.values())


def _event(condition: Condition) -> JobEvent:
    kind = EventType.NORMAL if condition.reason in _GOOD_REASONS else EventType.WARNING
    return JobEvent(kind, condition.reason, condition.message[:_MAX_NOTE_CHARACTERS])


def _of_damage(old: FineTuneJobStatus, new: FineTuneJobStatus) -> tuple[JobEvent, ...]:
    return tuple(
        JobEvent(EventType.WARNING, ConditionReason.CHECKPOINT_CORRUPT, damage[:_MAX_NOTE_CHARACTERS])
        for damage in new.damaged_checkpoints
        if damage not in old.damaged_checkpoints
    )


def _of_resuming(old: FineTuneJobStatus, new: FineTuneJobStatus) -> tuple[JobEvent, ...]:
    known = {attempt.number for attempt in old.attempts if attempt.resumed_from_step is not None}
    return tuple(
        JobEvent(
            EventType.NORMAL,
            ConditionReason.CHECKPOINT_LOADED,
            f"Attempt {attempt.number} goes on from the checkpoint of step {attempt.resumed_from_step}.",
        )
        for attempt in new.attempts
        if attempt.resumed_from_step and attempt.number not in known
    )
