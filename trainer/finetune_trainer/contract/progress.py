"""How far a training has come.

Global rank 0 serves it as JSON under `series.PROGRESS_PATH` of its exporter, from the moment at which the first step
begins, and the container's termination message repeats the last of it.
"""

from pydantic import Field

from finetune_trainer.contract.report import Report


class CheckpointReport(Report):
    """A complete checkpoint on the shared filesystem."""

    step: int = Field(description="Steps that were done when it was taken.")
    time: str = Field(description="When it was taken, RFC 3339.")
    path: str = Field(description="Its directory, relative to the shared filesystem's root.")
    bytes: int = Field(description="Size of its files.")
    digest: str = Field(description="`sha256:` digest of its manifest.json, which has the digests of the others.")


class FilesystemReport(Report):
    """How much room is left on a filesystem that the training writes to."""

    name: str = Field(description="`shared` or `network`.")
    size_bytes: int = Field(description="All of it.")
    free_bytes: int = Field(description="What the training may still write.")


class ProgressReport(Report):
    """How far the training has come."""

    step: int = Field(description="Optimizer steps done.")
    total_steps: int = Field(description="Optimizer steps of the whole run.")
    epoch: int = Field(description="Pass over the data that the last step belonged to, from 1.")
    loss: float | None = Field(default=None, description="Mean loss of the last global batch; none before a step.")
    learning_rate: float | None = Field(default=None, description="Learning rate of the last step.")
    tokens_per_second: float | None = Field(default=None, description="Of the last step, all processes together.")
    last_step_time: str | None = Field(default=None, description="When the last step ended, RFC 3339.")
    resumed_from_step: int = Field(default=0, description="Step that this attempt began at; 0 is the very start.")
    checkpoint: CheckpointReport | None = Field(default=None, description="The newest complete checkpoint.")
    damaged_checkpoints: tuple[str, ...] = Field(
        default=(),
        description="Checkpoints that could not be gone on from: which, what is wrong, and what was used instead.",
    )
    filesystems: tuple[FilesystemReport, ...] = Field(
        default=(), description="Room on the filesystems that it writes to, as last measured."
    )
