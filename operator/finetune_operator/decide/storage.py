"""Whether the filesystems of a training have room for what it will still write.

A full disk costs the steps since the last checkpoint, and hours later nobody is there to make room. What is still to
come is known beforehand: the size of a checkpoint, how many are kept, and what is made of the adapter in the end.
"""

from dataclasses import dataclass

from finetune_operator import status as tell
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.status import ConditionStatus, ConditionType, FineTuneJobStatus
from finetune_operator.causes import Trouble
from finetune_operator.names import ConditionReason
from finetune_operator.status import Moment
from finetune_trainer.contract.progress import FilesystemReport, ProgressReport
from finetune_trainer.contract.termination import PreparedReport

# Of one parameter of the adapter: itself, and with it Adam's two moments. All are fp32.
ADAPTER_BYTES, CHECKPOINT_BYTES = 4, 12
_MEBIBYTE = 1 << 20
_GIBIBYTE = 1 << 30
# For logs, manifests, and the little that other jobs add while nobody looks.
_RESERVE_BYTES = 64 * _MEBIBYTE
# A filesystem that others write to, too, swings around the limit: what was told is taken back with this much to spare.
_CLEARS_AT = 1.1
# A merged model has the number format of its base, which is bf16 for nearly all.
_MERGED_BYTES_PER_PARAMETER = 2


@dataclass(frozen=True)
class Need:
    """What a training will still write to the shared filesystem, at the moment at which that is most."""

    checkpoints: int
    """How many more checkpoints will be there at once than now."""
    checkpoint_bytes: int
    result_bytes: int
    """The adapter, and the merged model where one is asked for."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.checkpoints * self.checkpoint_bytes + self.result_bytes


def watch_storage(
    status: FineTuneJobStatus, spec: FineTuneJobSpec, report: ProgressReport, moment: Moment
) -> FineTuneJobStatus:
    """Tell when a filesystem will be full before the training is done, and when that is no longer so."""
    if not report.filesystems:
        return status  # a trainer that does not tell, or has not measured yet
    under_pressure = tell.answer(status, ConditionType.STORAGE_PRESSURE) is ConditionStatus.TRUE
    need = what_is_needed(spec, status, report)
    short = [
        words for found in report.filesystems if (words := _what_is_short(found, need, under_pressure, status.plan))
    ]
    if not short:
        return tell.storage_suffices(status, moment) if under_pressure else status
    if under_pressure:
        return status  # its figures are those of the moment at which it began, so that nothing is written meanwhile
    advice = (
        "Make room before the next checkpoint: remove models and datasets that no job needs, or make the claim larger "
        "where its storage class allows. When it is full, the job restarts once and then fails."
    )
    return tell.storage_short(status, moment, Trouble(ConditionReason.STORAGE_SHORT, f"{' '.join(short)} {advice}"))


def what_is_needed(spec: FineTuneJobSpec, status: FineTuneJobStatus, report: ProgressReport) -> Need:
    """Return what is still to be written to the shared filesystem."""
    every, keep = spec.checkpoint.every_steps, spec.checkpoint.keep
    adapter_parameters = status.plan.trainable_parameters if status.plan is not None else 0
    parameters = status.plan.parameters if status.plan is not None and spec.export.merged else 0
    still_to_write = report.total_steps // every - report.step // every
    if report.total_steps % every and report.step < report.total_steps:
        still_to_write += 1  # the last step has one, too
    # A new one is complete before the oldest is removed.
    room_for = keep + 1 - min(keep, report.step // every)
    return Need(
        checkpoints=min(still_to_write, room_for),
        checkpoint_bytes=(
            status.checkpoint.bytes
            if status.checkpoint is not None and status.checkpoint.bytes
            else CHECKPOINT_BYTES * adapter_parameters
        ),
        result_bytes=ADAPTER_BYTES * adapter_parameters + _MERGED_BYTES_PER_PARAMETER * parameters,
    )


def _what_is_short(
    found: FilesystemReport, need: Need, under_pressure: bool, plan: PreparedReport | None
) -> str | None:
    """Return what is short on a filesystem, as a sentence; None when there is room enough."""
    wanted_bytes = (need.total_bytes if found.name == "shared" and plan is not None else 0) + _RESERVE_BYTES
    if found.free_bytes >= wanted_bytes * (_CLEARS_AT if under_pressure else 1):
        return None
    room = f"The {found.name} filesystem has {_size(found.free_bytes)} free of {_size(found.size_bytes)}"
    if wanted_bytes == _RESERVE_BYTES:
        return f"{room}, and the training writes its logs there."
    what = f"{need.checkpoints} checkpoints of {_size(need.checkpoint_bytes)} beside those that are there"
    return f"{room}, and the training needs about {_size(wanted_bytes)} more: {what}, and its result."


def _size(num_bytes: int) -> str:
    if num_bytes >= _GIBIBYTE:
        return f"{num_bytes / _GIBIBYTE:.1f} GiB"
    return f"{num_bytes / _MEBIBYTE:.0f} MiB"
