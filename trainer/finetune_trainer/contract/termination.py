"""How a container ends: a reason from a closed list, and a message for a person.

torchrun hides the exit code of the process that failed, so the termination message of the container
(https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/) is the contract.
"""

from collections import Counter
from enum import StrEnum
from pathlib import Path

from pydantic import Field, ValidationError

from finetune_trainer.contract.evaluation import EvaluationReport, ExportReport
from finetune_trainer.contract.preflight import PreflightReport
from finetune_trainer.contract.progress import ProgressReport
from finetune_trainer.contract.report import Report

TERMINATION_LOG = Path("/dev/termination-log")
# With which a container ends that was told to stop, as a shell says it of a process that SIGTERM ended. Its Job can
# tell it from one that failed (docs/operator/queues.md).
STOPPED_EXIT_CODE = 143
MAX_BYTES = 4096  # the kubelet cuts a longer message off


class Reason(StrEnum):
    """Why a container ended."""

    SUCCEEDED = "Succeeded"
    INVALID_SPEC = "InvalidSpec"
    MODEL_UNAVAILABLE = "ModelUnavailable"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    DATA_UNAVAILABLE = "DataUnavailable"
    DATA_INVALID = "DataInvalid"
    WILL_NOT_FIT = "WillNotFit"
    STORAGE_FULL = "StorageFull"
    STORAGE_NOT_WRITABLE = "StorageNotWritable"
    DEVICE_UNAVAILABLE = "DeviceUnavailable"
    DIVERGED = "Diverged"
    OUT_OF_GPU_MEMORY = "OutOfGPUMemory"
    COLLECTIVE_FAILED = "CollectiveFailed"
    CHECKPOINT_UNUSABLE = "CheckpointUnusable"
    GATE_NOT_MET = "GateNotMet"
    UPLOAD_FAILED = "UploadFailed"
    TERMINATED = "Terminated"
    KILLED = "Killed"
    ERROR = "Error"


class DatasetReport(Report):
    """What became of the rows of one data set."""

    name: str = Field(description="Repository or path of the data set.")
    revision: str | None = Field(default=None, description="Commit that was read; empty for a path.")
    rows_read: int = Field(description="Rows read from the files.")
    rows_kept: int = Field(description="Rows that became training data.")
    rows_held_out: int = Field(default=0, description="Rows that are never trained on.")
    dropped: dict[str, int] = Field(default_factory=dict, description="Rows left out, by reason.")


class PreparedReport(Report):
    """What prepare found and resolved: the plan of the training."""

    model: str = Field(description="The base model: repository@commit, or path.")
    model_family: str = Field(description="Architecture family the model was recognised as.")
    model_path: str = Field(description="Directory of the model, relative to the shared filesystem's root.")
    data_path: str = Field(description="Directory of the packed data, relative to the shared filesystem's root.")
    datasets: tuple[DatasetReport, ...] = Field(default=(), description="What became of the rows of each data set.")
    parameters: int = Field(description="Parameters of the base model.")
    trainable_parameters: int = Field(description="Parameters of the adapter.")
    tokens: int = Field(description="Tokens of one epoch.")
    trained_tokens: int = Field(description="Tokens of one epoch that carry a loss: the assistant's.")
    sequences: int = Field(description="Sequences of one epoch, after packing.")
    truncated_conversations: int = Field(default=0, description="Conversations cut at maxSequenceLength.")
    preflight: PreflightReport | None = Field(default=None, description="What was found in the data.")
    world_size: int = Field(description="Processes that train.")
    global_batch: int = Field(description="Sequences of one step.")
    steps_per_epoch: int = Field(description="Steps of one epoch.")
    total_steps: int = Field(description="Steps of the whole run.")
    warmup_steps: int = Field(description="Steps until the peak learning rate.")
    precision: str = Field(description="Resolved precision.")
    sharding: str = Field(description="Resolved sharding.")
    kernels: str = Field(default="plain", description="Resolved kernels.")
    activation_checkpointing: bool | None = Field(
        default=None, description="Resolved; not set where the training decides, as it sees the GPUs."
    )
    estimated_memory_bytes: int = Field(description="Estimated peak memory of one process, in bytes.")
    notes: tuple[str, ...] = Field(default=(), description="What was decided on the user's behalf, and why.")


class TrainedReport(Report):
    """What came out of the training."""

    steps: int = Field(description="Steps done.")
    first_loss: float = Field(description="Loss of the first step, before any update.")
    final_loss: float = Field(description="Mean loss of the last steps, ten at most.")
    tokens: int = Field(description="Tokens computed in the whole run.")
    tokens_per_second: float = Field(description="Mean over the run.")
    adapter_path: str = Field(description="The adapter's directory, relative to the shared filesystem's root.")
    adapter_digest: str = Field(description="`sha256:` digest of adapter_model.safetensors.")


class TerminationMessage(Report):
    """The last word of a container."""

    reason: Reason
    message: str
    rank: int | None = None
    step: int | None = None
    checkpoint: str | None = None
    prepared: PreparedReport | None = None
    trained: TrainedReport | None = None
    progress: ProgressReport | None = None  # on the node of rank 0, once the training has begun
    evaluated: EvaluationReport | None = None  # also where the gate was not met
    exported: ExportReport | None = None


def write_termination(path: Path, termination: TerminationMessage) -> None:
    """Write a termination message of at most `MAX_BYTES`.

    What is too long loses, until it fits, the scores of single tools, the middle of its text, then what it says of
    damaged checkpoints, which the log has too, then its notes, then the list of its data sets; prepared.json and
    evaluation.json have them all.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(_fitted(termination), encoding="utf-8")


def read_termination(text: str | None) -> TerminationMessage | None:
    """Read a termination message, or return None for a text that is none (a kill, an image without the trainer)."""
    if not text:
        return None
    try:
        return TerminationMessage.model_validate_json(text)
    except ValidationError:
        return None


def _fitted(termination: TerminationMessage) -> str:
    text = _text(termination)
    for shorten in (_without_tools, _with_shorter_message, _without_damages, _without_notes, _with_datasets_merged):
        excess_bytes = len(text.encode()) - MAX_BYTES
        if excess_bytes > 0:
            termination = shorten(termination, excess_bytes)
            text = _text(termination)
    return text


def _text(termination: TerminationMessage) -> str:
    return termination.model_dump_json(by_alias=True, exclude_none=True)


def _without_tools(termination: TerminationMessage, _: int) -> TerminationMessage:
    if termination.evaluated is None:
        return termination
    return termination.model_copy(update={"evaluated": termination.evaluated.model_copy(update={"tools": ()})})


def _with_shorter_message(termination: TerminationMessage, excess_bytes: int) -> TerminationMessage:
    message, mark = termination.message, " [...] "
    # The cut counts characters, each of one byte at least, so that what is left surely fits.
    keep = max(len(message) - excess_bytes - len(mark), 200)
    if keep >= len(message):
        return termination
    shorter = message[: keep // 2] + mark + message[len(message) - keep // 2 :]
    return termination.model_copy(update={"message": shorter})


def _without_damages(termination: TerminationMessage, _: int) -> TerminationMessage:
    progress = termination.progress
    if progress is None or not progress.damaged_checkpoints:
        return termination
    told = (f"{len(progress.damaged_checkpoints)} checkpoints; each is in training.log",)
    return termination.model_copy(update={"progress": progress.model_copy(update={"damaged_checkpoints": told})})


def _without_notes(termination: TerminationMessage, _: int) -> TerminationMessage:
    return _with_prepared(termination, {"notes": ("The notes are in prepared.json",)})


def _with_datasets_merged(termination: TerminationMessage, _: int) -> TerminationMessage:
    datasets = termination.prepared.datasets if termination.prepared else ()
    dropped: Counter[str] = Counter()
    for dataset in datasets:
        dropped.update(dataset.dropped)
    merged = DatasetReport(
        name=f"{len(datasets)} data sets; each is in prepared.json",
        rows_read=sum(dataset.rows_read for dataset in datasets),
        rows_kept=sum(dataset.rows_kept for dataset in datasets),
        rows_held_out=sum(dataset.rows_held_out for dataset in datasets),
        dropped=dict(dropped),
    )
    return _with_prepared(termination, {"datasets": (merged,)})


def _with_prepared(termination: TerminationMessage, changes: dict[str, object]) -> TerminationMessage:
    if termination.prepared is None:
        return termination
    return termination.model_copy(update={"prepared": termination.prepared.model_copy(update=changes)})
