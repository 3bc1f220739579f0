"""What we tell a person about a job: its phase, its conditions, its progress, and the Events of what changed.

Pure. Each function takes the status so far and returns the next one; a condition keeps its transition time for as long
as its answer stays the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from finetune_operator.api.status import (
    Attempt,
    Checkpoint,
    Condition,
    ConditionStatus,
    ConditionType,
    FineTuneJobStatus,
    Phase,
    Progress,
    Result,
)
from finetune_operator.causes import Trouble
from finetune_operator.names import ConditionReason
from finetune_trainer.contract import series as names_of_series
from finetune_trainer.contract.termination import PreparedReport, TrainedReport

_MAX_MESSAGE_CHARACTERS = 4096
_MAX_NOTE_CHARACTERS = 1024  # an Event's note may not be longer


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


@dataclass(frozen=True)
class Moment:
    """When a status is made, and from which generation of the spec."""

    now: datetime
    generation: int

    @property
    def text(self) -> str:
        """The time in RFC 3339, in UTC and whole seconds."""
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")


def about(status: FineTuneJobStatus, model: str) -> FineTuneJobStatus:
    """Tell which model a job is about."""
    return status.model_copy(update={"model": model})


def refused(status: FineTuneJobStatus, moment: Moment, trouble: Trouble) -> FineTuneJobStatus:
    """Tell that the spec cannot be carried out; it may still be changed, so this is not the end."""
    return _told(status, moment, Phase.FAILED, trouble.reason, {ConditionType.ACCEPTED: (_FALSE, trouble)})


def not_yet_accepted(status: FineTuneJobStatus, moment: Moment, trouble: Trouble) -> FineTuneJobStatus:
    """Tell what has to be there before it can be said whether the job is accepted."""
    conditions = {
        ConditionType.ACCEPTED: (ConditionStatus.UNKNOWN, trouble),
        ConditionType.PREPARED: (_FALSE, trouble),
    }
    return _told(status, moment, Phase.PENDING, trouble.reason, conditions)


def accepted(status: FineTuneJobStatus, moment: Moment, message: str) -> FineTuneJobStatus:
    """Tell that the job is accepted: from here on its spec is fixed."""
    if answer(status, ConditionType.ACCEPTED) is _TRUE:
        return status
    told = Trouble(ConditionReason.ACCEPTED, message)
    status = status.model_copy(update={"start_time": moment.text})
    return _told(status, moment, Phase.PENDING, told.reason, {ConditionType.ACCEPTED: (_TRUE, told)})


def preparing(status: FineTuneJobStatus, moment: Moment, waits: Trouble | None, runs: bool) -> FineTuneJobStatus:
    """Tell that model and data are being prepared, or what keeps that from starting."""
    told = waits or Trouble(
        ConditionReason.PREPARING,
        "Model and data are being downloaded, checked and packed; no GPU is held."
        if runs
        else "The prepare pod is starting.",
    )
    phase = Phase.PREPARING if runs else Phase.PENDING
    return _told(status, moment, phase, told.reason, {ConditionType.PREPARED: (_FALSE, told)})


def prepared(status: FineTuneJobStatus, moment: Moment, report: PreparedReport) -> FineTuneJobStatus:
    """Tell what prepare found and resolved."""
    told = Trouble(ConditionReason.PREPARED, summary_of(report))
    status = status.model_copy(update={"plan": report})
    return _told(status, moment, status.phase, status.reason, {ConditionType.PREPARED: (_TRUE, told)})


def starting(status: FineTuneJobStatus, moment: Moment, waits: Trouble | None) -> FineTuneJobStatus:
    """Tell that the training pods are starting, or what keeps them from it; then the job is pending again."""
    told = waits or Trouble(ConditionReason.STARTING, "The training pods are starting.")
    if not status.attempts:
        status = status.model_copy(update={"attempts": (Attempt(number=1, started=moment.text),)})
    phase = Phase.STARTING if waits is None else Phase.PENDING
    return _told(status, moment, phase, told.reason, {ConditionType.RUNNING: (_FALSE, told)})


def running(
    status: FineTuneJobStatus, moment: Moment, num_pods: int, series: Mapping[str, float] | None
) -> FineTuneJobStatus:
    """Tell that all pods of the gang run, and how far they are when rank 0 said so."""
    told = Trouble(
        ConditionReason.RUNNING, "The training pod runs." if num_pods == 1 else f"All {num_pods} training pods run."
    )
    status = _told(status, moment, Phase.RUNNING, told.reason, {ConditionType.RUNNING: (_TRUE, told)})
    return status if series is None else _with_progress(status, series)


def succeeded(status: FineTuneJobStatus, moment: Moment, report: TrainedReport | None) -> FineTuneJobStatus:
    """Tell that the training is done, and what came out of it."""
    if report is None:
        message = "The training is done; its last report is lost because the pod of rank 0 was deleted."
    else:
        message = (
            f"Loss {report.first_loss:.3f} -> {report.final_loss:.3f} in {report.steps} steps; the adapter is in "
            f"{report.adapter_path} on the shared filesystem."
        )
        status = status.model_copy(
            update={
                "result": Result(**report.model_dump()),
                "progress": _last_progress(status, report),
                "checkpoint": Checkpoint(step=report.steps),  # a run ends with one
            }
        )
    told = Trouble(ConditionReason.SUCCEEDED, message)
    conditions = {ConditionType.RUNNING: (_FALSE, told), ConditionType.COMPLETE: (_TRUE, told)}
    return _ended(_told(status, moment, Phase.SUCCEEDED, told.reason, conditions), moment, told.reason)


def failed(status: FineTuneJobStatus, moment: Moment, cause: Trouble) -> FineTuneJobStatus:
    """Tell that the job failed, and why."""
    conditions = {ConditionType.FAILED: (_TRUE, cause)}
    if answer(status, ConditionType.PREPARED) is not _TRUE:
        conditions[ConditionType.PREPARED] = (_FALSE, cause)
    if answer(status, ConditionType.RUNNING) is not None:
        conditions[ConditionType.RUNNING] = (_FALSE, cause)
    return _ended(_told(status, moment, Phase.FAILED, cause.reason, conditions), moment, cause.reason)


def answer(status: FineTuneJobStatus, condition_type: ConditionType) -> ConditionStatus | None:
    """Return the answer of a condition, or None when it was not given yet."""
    return next((condition.status for condition in status.conditions if condition.type is condition_type), None)


def is_finished(status: FineTuneJobStatus) -> bool:
    """Whether the job has succeeded or failed for good."""
    return _TRUE in (answer(status, ConditionType.COMPLETE), answer(status, ConditionType.FAILED))


def events_between(old: FineTuneJobStatus, new: FineTuneJobStatus) -> tuple[JobEvent, ...]:
    """Return an Event for each condition whose answer or reason changed; so each is told once, whoever asks again."""
    before = {condition.type: (condition.status, condition.reason) for condition in old.conditions}
    changed = [
        condition for condition in new.conditions if before.get(condition.type) != (condition.status, condition.reason)
    ]
    told: dict[tuple[str, str], JobEvent] = {}
    for condition in changed:
        kind = EventType.NORMAL if _is_good_news(condition) else EventType.WARNING
        # Running=False and Failed=True of the same cause are one piece of news.
        told[condition.reason, condition.message] = JobEvent(
            kind, condition.reason, condition.message[:_MAX_NOTE_CHARACTERS]
        )
    return tuple(told.values())


def summary_of(report: PreparedReport) -> str:
    """Return what prepare found, in a sentence or two."""
    kept = sum(dataset.rows_kept for dataset in report.datasets)
    read = sum(dataset.rows_read for dataset in report.datasets)
    dropped = f"{read - kept} of {read} rows dropped" if kept < read else f"all {read} rows kept"
    return (
        f"{report.model} ({report.model_family}, {_count(report.parameters)} parameters, "
        f"{_count(report.trainable_parameters)} trained): {report.sequences} sequences, "
        f"{_count(report.tokens)} tokens, {dropped}; {report.total_steps} steps of {report.global_batch} sequences on "
        f"{report.world_size} processes, {report.precision}, {report.sharding}."
    )


def duration_text(seconds: float) -> str:
    """Return a duration for a table: `45s`, `12m30s`, `1h05m`, `3d04h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


_TRUE, _FALSE = ConditionStatus.TRUE, ConditionStatus.FALSE
_GOOD_REASONS = frozenset(
    {
        ConditionReason.ACCEPTED,
        ConditionReason.PREPARING,
        ConditionReason.PREPARED,
        ConditionReason.STARTING,
        ConditionReason.RUNNING,
        ConditionReason.SUCCEEDED,
        ConditionReason.FORMER_JOB_LEAVING,
    }
)
Answers = dict[ConditionType, tuple[ConditionStatus, Trouble]]


def _is_good_news(condition: Condition) -> bool:
    return condition.reason in _GOOD_REASONS


def _told(
    status: FineTuneJobStatus, moment: Moment, phase: Phase | None, reason: str | None, answers: Answers
) -> FineTuneJobStatus:
    conditions = {condition.type: condition for condition in status.conditions}
    for condition_type, (condition_status, told) in answers.items():
        known = conditions.get(condition_type)
        unchanged = known is not None and known.status is condition_status
        conditions[condition_type] = Condition(
            type=condition_type,
            status=condition_status,
            reason=told.reason,
            message=told.message[:_MAX_MESSAGE_CHARACTERS],
            observed_generation=moment.generation,
            last_transition_time=known.last_transition_time if known is not None and unchanged else moment.text,
        )
    return status.model_copy(
        update={
            "phase": phase,
            "reason": str(reason) if reason is not None else None,
            "observed_generation": moment.generation,
            "conditions": tuple(conditions[condition] for condition in ConditionType if condition in conditions),
        }
    )


def _ended(status: FineTuneJobStatus, moment: Moment, reason: str) -> FineTuneJobStatus:
    attempts = status.attempts
    if attempts and attempts[-1].ended is None:
        last = attempts[-1].model_copy(update={"ended": moment.text, "reason": str(reason)})
        attempts = (*attempts[:-1], last)
    return status.model_copy(update={"completion_time": moment.text, "attempts": attempts})


def _with_progress(status: FineTuneJobStatus, series: Mapping[str, float]) -> FineTuneJobStatus:
    step = _whole(series.get(names_of_series.STEP))
    total_steps = _whole(series.get(names_of_series.STEPS_TOTAL)) or (status.plan.total_steps if status.plan else 0)
    loss = _finite(series.get(names_of_series.LOSS)) if step else None
    progress = Progress(
        step=step,
        total_steps=total_steps,
        steps=f"{step}/{total_steps}",
        # The series counts epochs done as a fraction; the step belongs to the epoch after those.
        epoch=math.ceil(_finite(series.get(names_of_series.EPOCH)) or 0),
        loss=loss,
        loss_text=None if loss is None else f"{loss:.3f}",
        learning_rate=_finite(series.get(names_of_series.LEARNING_RATE)),
        tokens_per_second=_finite(series.get(names_of_series.TOKENS_PER_SECOND)),
        eta=_eta(series, total_steps - step),
    )
    update: dict[str, object] = {"progress": progress}
    if checkpoint_step := _whole(series.get(names_of_series.CHECKPOINT_LAST_STEP)):
        update["checkpoint"] = Checkpoint(step=checkpoint_step)
    return status.model_copy(update=update)


def _last_progress(status: FineTuneJobStatus, report: TrainedReport) -> Progress:
    total_steps = status.plan.total_steps if status.plan else report.steps
    before = status.progress or Progress(step=0, total_steps=total_steps, steps="", epoch=0)
    return before.model_copy(
        update={
            "step": report.steps,
            "total_steps": total_steps,
            "steps": f"{report.steps}/{total_steps}",
            "loss": report.final_loss,
            "loss_text": f"{report.final_loss:.3f}",
            "tokens_per_second": report.tokens_per_second,
            "eta": None,
        }
    )


def _eta(series: Mapping[str, float], steps_left: int) -> str | None:
    """Return the time left by the mean duration of the steps so far."""
    count = series.get(f"{names_of_series.STEP_DURATION_SECONDS}_count", 0)
    total_seconds = series.get(f"{names_of_series.STEP_DURATION_SECONDS}_sum", 0)
    if not count or not math.isfinite(total_seconds):
        return None
    return duration_text(total_seconds / count * max(0, steps_left))


def _whole(value: float | None) -> int:
    return int(value) if value is not None and math.isfinite(value) and value > 0 else 0


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _count(number: int) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return str(number)
