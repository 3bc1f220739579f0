"""How far the training is: from what rank 0 reports to what is told of it.

Pure. Rank 0 runs the image that the user chose, so a report that a status cannot hold is passed over.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from finetune_operator.api.status import (
    MAX_DAMAGED_CHECKPOINTS,
    Attempt,
    Checkpoint,
    FineTuneJobStatus,
    Progress,
)
from finetune_trainer.contract.progress import CheckpointReport, ProgressReport
from finetune_trainer.contract.termination import PreparedReport, TrainedReport

_MAX_NOTE_CHARACTERS = 1000


@dataclass(frozen=True)
class Heard:
    """What came back when rank 0 was asked how far it is."""

    answers: bool
    """Whether anything answered. Before the first step begins, the exporter answers without a report."""
    report: ProgressReport | None = None


def with_report(status: FineTuneJobStatus, report: ProgressReport) -> FineTuneJobStatus:
    """Tell what rank 0 of the newest attempt reported: progress, checkpoint, and where the attempt stands."""
    try:
        progress = _progress(status, report)
        checkpoint = status.checkpoint if report.checkpoint is None else _checkpoint(report.checkpoint)
    except ValidationError:
        return status
    damaged = tuple(text[:_MAX_NOTE_CHARACTERS] for text in report.damaged_checkpoints)
    news = tuple(text for text in dict.fromkeys(damaged) if text not in status.damaged_checkpoints)
    return status.model_copy(
        update={
            "progress": progress,
            "checkpoint": checkpoint,
            "damaged_checkpoints": (*status.damaged_checkpoints, *news)[-MAX_DAMAGED_CHECKPOINTS:],
            "attempts": _with_steps(status.attempts, progress.step, max(0, report.resumed_from_step), checkpoint),
        }
    )


def with_result(status: FineTuneJobStatus, report: TrainedReport) -> FineTuneJobStatus:
    """Tell the end of the training: all steps are done, and the checkpoint of the last one is written."""
    total_steps = status.plan.total_steps if status.plan else report.steps
    before = status.progress or Progress(step=0, total_steps=total_steps, steps="", epoch=0)
    progress = before.model_copy(
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
    checkpoint = status.checkpoint
    if checkpoint is None or checkpoint.step != report.steps:
        checkpoint = Checkpoint(step=report.steps)
    attempts = status.attempts
    if attempts:
        attempts = _with_steps(attempts, report.steps, attempts[-1].resumed_from_step, checkpoint)
    return status.model_copy(update={"progress": progress, "checkpoint": checkpoint, "attempts": attempts})


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


def _progress(status: FineTuneJobStatus, report: ProgressReport) -> Progress:
    loss, tokens_per_second = _finite(report.loss), _finite(report.tokens_per_second)
    return Progress(
        step=report.step,
        total_steps=report.total_steps,
        steps=f"{report.step}/{report.total_steps}",
        epoch=report.epoch,
        loss=loss,
        loss_text=None if loss is None else f"{loss:.3f}",
        learning_rate=_finite(report.learning_rate),
        tokens_per_second=tokens_per_second,
        last_step_time=_whole_seconds(report.last_step_time),
        eta=_eta(status.plan, tokens_per_second, report.total_steps - report.step) if _trains(status) else None,
    )


def _checkpoint(report: CheckpointReport) -> Checkpoint:
    return Checkpoint(
        step=report.step,
        time=_whole_seconds(report.time),
        path=report.path,
        bytes=report.bytes,
        digest=report.digest,
    )


def _with_steps(
    attempts: tuple[Attempt, ...], step: int, resumed_from_step: int | None, checkpoint: Checkpoint | None
) -> tuple[Attempt, ...]:
    """Tell where the newest attempt began and stands; where it began settles what the one before it had lost."""
    if not attempts:
        return attempts
    *former, newest = attempts
    update: dict[str, int | None] = {"resumed_from_step": resumed_from_step, "last_step": step}
    if newest.ended is not None:
        update["steps_lost"] = steps_lost(step, checkpoint)
    is_news = newest.resumed_from_step is None and resumed_from_step is not None
    if former and is_news and former[-1].last_step is not None:
        lost = max(0, former[-1].last_step - (resumed_from_step or 0))
        former[-1] = former[-1].model_copy(update={"steps_lost": lost})
    return (*former, newest.model_copy(update=update))


def steps_lost(last_step: int | None, checkpoint: Checkpoint | None) -> int | None:
    """Return how many steps have to be done again from a checkpoint, or from the first step when there is none."""
    if last_step is None:
        return None
    return max(0, last_step - (checkpoint.step if checkpoint else 0))


def _trains(status: FineTuneJobStatus) -> bool:
    return bool(status.attempts) and status.attempts[-1].ended is None


def _eta(plan: PreparedReport | None, tokens_per_second: float | None, steps_left: int) -> str | None:
    """Return the time left: the tokens of the steps to come, at the speed of the last one."""
    if plan is None or not plan.sequences or not tokens_per_second or tokens_per_second < 0:
        return None
    tokens_of_a_step = plan.tokens / plan.sequences * plan.global_batch
    return duration_text(steps_left * tokens_of_a_step / tokens_per_second)


def _whole_seconds(time: str | None) -> str | None:
    """Return a time as Kubernetes writes it, or None for what is none or does not say in which zone it is."""
    try:
        moment = datetime.fromisoformat(time or "")
    except ValueError:
        return None
    return None if moment.tzinfo is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
