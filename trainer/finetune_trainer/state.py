"""What changes while a run goes on: the adapter, the optimizer, and how far they have come."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune_trainer.architecture import ModelShape
from finetune_trainer.cache import write_atomically
from finetune_trainer.checkpoint.background import BackgroundCheckpoints, Checkpoints, Written
from finetune_trainer.checkpoint.content import (
    Checkpoint,
    Progress,
    Tensors,
    create_moments,
    optimizer_tensors,
    restore,
)
from finetune_trainer.checkpoint.layout import find_checkpoints
from finetune_trainer.checkpoint.manifest import DamagedError, describe
from finetune_trainer.checkpoint.read import Found, find_usable, read_checkpoint
from finetune_trainer.checkpoint.write import trim, write_adapter, write_checkpoint
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.progress import CheckpointReport
from finetune_trainer.contract.report import rfc3339
from finetune_trainer.contract.termination import PreparedReport, Reason, TrainedReport
from finetune_trainer.errors import TrainerError
from finetune_trainer.gang import Place, broadcast
from finetune_trainer.lora import adapter_parameters, from_peft, peft_config, to_peft
from finetune_trainer.model import has_interleaved_rotary
from finetune_trainer.sharding import AdapterGradients
from finetune_trainer.storage import storage_errors

# What may differ between a run and the one whose checkpoint it goes on from: none of it changes what a step computes.
# batchSize and gradientAccumulation are held through the global batch.
FREE_SETTINGS = {
    "batch_size",
    "gradient_accumulation",
    "activation_checkpointing",
    "kernels",
    "profile",
    "log_every_steps",
}


class TrainingState:
    """The adapter of a model, its gradients, its optimizer, and the progress of the run.

    Every process holds all of it, so rank 0 can write it alone, and any number of processes can go on from it.
    """

    def __init__(
        self,
        job: TrainerJob,
        paths: JobPaths,
        place: Place,
        prepared: PreparedReport,
        shape: ModelShape,
        model: nn.Module,
    ) -> None:
        self.job = job
        self.paths = paths
        self.place = place
        self.prepared = prepared
        self.progress = Progress()
        self.resumed_from = Found()
        self._shape = shape
        self._interleaved_rotary = has_interleaved_rotary(shape.family)
        self._adapter = adapter_parameters(model)
        self.gradients = AdapterGradients(self._adapter.values())
        settings = job.spec.training.optimizer
        self._optimizer = torch.optim.AdamW(
            self._adapter.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        create_moments(self._optimizer)
        self._moments = optimizer_tensors(self._optimizer, self._adapter)

    def apply_gradients(self, learning_rate: float, gradient_norm: torch.Tensor) -> None:
        """Do an optimizer step; where the norm of the gradients is no number, everything stays as it was."""
        # Fused AdamW looks at it on the GPU, as torch.amp.GradScaler has it do, so nobody waits for the norm.
        self._optimizer.found_inf = (~torch.isfinite(gradient_norm)).float()  # type: ignore[attr-defined]
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()

    @property
    def settings(self) -> dict[str, Any]:
        """What has to be equal for a run to go on from another's checkpoint, by the names of the manifest."""
        lora = self.job.spec.lora.model_dump(mode="json", by_alias=True)
        training = self.job.spec.training.model_dump(mode="json", by_alias=True, exclude=FREE_SETTINGS)
        return {
            "model": self.prepared.model,
            "data": self.prepared.data_path,
            "global batch": self.prepared.global_batch,
            "total steps": self.prepared.total_steps,
            **{f"lora.{name}": value for name, value in lora.items()},
            **{f"training.{name}": value for name, value in training.items()},
        }

    def newest_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint of this job, or None."""
        return next(iter(find_checkpoints(self.paths.checkpoints)), None)

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is any; every process takes the one of rank 0.

        Raises:
            TrainerError: CHECKPOINT_UNUSABLE when there are checkpoints and none can be used, INVALID_SPEC when it was
                written with other settings.
        """
        self.resumed_from = broadcast_result(self._find_checkpoint if self.place.rank == 0 else None)
        directory = self.resumed_from.directory
        if directory is None:
            return
        try:
            checkpoint = read_checkpoint(directory, self.settings)
        except DamagedError as error:
            raise TrainerError(
                Reason.CHECKPOINT_UNUSABLE,
                f"{directory} is whole for process 0, but damaged for process {self.place.rank}: {error}. Check that "
                "all nodes mount the same shared filesystem",
            ) from error
        restore(self._adapter, from_peft(checkpoint.adapter, self._adapter, self._shape, self._interleaved_rotary))
        restore(self._moments, checkpoint.optimizer)
        self.progress = checkpoint.progress

    def _find_checkpoint(self) -> Found:
        """Find where to go on, and make room on the shared filesystem first."""
        checkpoints = self.paths.checkpoints
        found = find_usable(checkpoints, self.settings)
        trim(checkpoints, self.job.spec.checkpoint.keep)
        return found

    def open_checkpoints(self, tell: Callable[[Written], None]) -> Checkpoints:
        """Return what takes checkpoints of this state: on rank 0 a thread that writes, elsewhere nothing.

        Args:
            tell: is told of each checkpoint when it is complete.
        """
        if self.place.rank != 0:
            return Checkpoints()
        return BackgroundCheckpoints(
            dict(self._adapter) | self._moments, self._write_checkpoint, tell, self.progress.step
        )

    def _write_checkpoint(self, copied: Tensors, progress: Progress) -> CheckpointReport:
        weights, config = self._peft_adapter({name: copied[name] for name in self._adapter})
        checkpoint = Checkpoint(
            progress=progress,
            settings=self.settings,
            adapter=weights,
            adapter_config=config,
            optimizer={name: copied[name] for name in self._moments},
            time=rfc3339(datetime.now(UTC)),
        )
        directory = write_checkpoint(self.paths.checkpoints, checkpoint, self.job.spec.checkpoint.keep)
        return describe(directory, self.paths.shared)

    def write_result(self) -> TrainedReport:
        """Write the adapter as the run's result, and the report of what came out of the run; return the report.

        Raises:
            TrainerError: STORAGE_FULL or STORAGE_NOT_WRITABLE.
        """
        progress, losses = self.progress, self.progress.recent_losses
        report = TrainedReport(
            steps=progress.step,
            first_loss=progress.first_loss,
            final_loss=sum(losses) / len(losses),
            tokens=progress.tokens,
            tokens_per_second=progress.tokens / progress.seconds,
            adapter_path=str(self.paths.adapter.relative_to(self.paths.shared)),
            adapter_digest=write_adapter(self.paths.adapter, *self._peft_adapter(dict(self._adapter))),
        )
        with storage_errors(self.paths.trained):
            write_atomically(self.paths.trained, report.model_dump_json(by_alias=True, indent=1))
        return report

    def _peft_adapter(self, adapter: Tensors) -> tuple[Tensors, dict[str, Any]]:
        base_model, _, revision = self.prepared.model.partition("@")
        weights = to_peft(adapter, self._shape, self._interleaved_rotary)
        return weights, peft_config(self.job.spec.lora, base_model, revision or None)


def broadcast_result(find: Callable[[], Found] | None) -> Found:
    """Return on every process what rank 0 found, or raise there what kept it from finding it."""
    result: Found | tuple[Reason, str] | None = None
    if find is not None:
        try:
            result = find()
        except TrainerError as error:
            result = (error.reason, error.message)
    received = broadcast(result)
    if isinstance(received, Found):
        return received
    assert received is not None
    raise TrainerError(*received)
