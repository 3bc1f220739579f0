"""What changes while a run goes on: the adapter, the optimizer, and how far they have come."""

from pathlib import Path
from typing import Any

import torch

from finetune_trainer.architecture import ModelShape
from finetune_trainer.checkpoint import (
    Checkpoint,
    Progress,
    find_checkpoints,
    optimizer_tensors,
    read_checkpoint,
    restore_optimizer,
    write_adapter,
    write_checkpoint,
)
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import PreparedReport, TrainedReport
from finetune_trainer.gang import Place, broadcast
from finetune_trainer.lora import adapter_parameters, from_peft, peft_config, to_peft
from finetune_trainer.model import CausalDecoder, has_interleaved_rotary
from finetune_trainer.sharding import AdapterGradients

# What may differ between a run and the one whose checkpoint it goes on from: none of it changes what a step computes.
# batchSize and gradientAccumulation are held through the global batch.
FREE_SETTINGS = {"batch_size", "gradient_accumulation", "activation_checkpointing", "log_every_steps"}


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
        model: CausalDecoder,
    ) -> None:
        self.job = job
        self.paths = paths
        self.place = place
        self.prepared = prepared
        self.progress = Progress()
        self._shape = shape
        self._interleaved_rotary = has_interleaved_rotary(shape.family)
        self._adapter = adapter_parameters(model)
        self.gradients = AdapterGradients(self._adapter.values())
        settings = job.spec.training.optimizer
        self._optimizer = torch.optim.AdamW(
            self._adapter.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def apply_gradients(self, learning_rate: float) -> None:
        """Do an optimizer step."""
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
        """Go on from the newest checkpoint, if there is one; every process takes the one that rank 0 sees.

        Raises:
            TrainerError: it cannot be read, or was written with other settings.
        """
        newest = broadcast(self.newest_checkpoint())
        if newest is None:
            return
        checkpoint = read_checkpoint(newest, self.settings)
        values = from_peft(checkpoint.adapter, self._adapter, self._shape, self._interleaved_rotary)
        with torch.no_grad():
            for name, parameter in self._adapter.items():
                parameter.copy_(values[name])
        restore_optimizer(self._optimizer, self._adapter, checkpoint.optimizer)
        self.progress = checkpoint.progress

    def write_checkpoint(self) -> Path:
        """Write a step checkpoint and return its directory.

        Raises:
            TrainerError: STORAGE_FULL or STORAGE_NOT_WRITABLE.
        """
        weights, config = self._peft_adapter()
        checkpoint = Checkpoint(
            progress=self.progress,
            settings=self.settings,
            adapter=weights,
            adapter_config=config,
            optimizer=optimizer_tensors(self._optimizer, self._adapter),
        )
        return write_checkpoint(self.paths.checkpoints, checkpoint, self.job.spec.checkpoint.keep)

    def write_result(self) -> TrainedReport:
        """Write the adapter as the run's result, and return what came out of the run.

        Raises:
            TrainerError: STORAGE_FULL or STORAGE_NOT_WRITABLE.
        """
        progress, losses = self.progress, self.progress.recent_losses
        return TrainedReport(
            steps=progress.step,
            first_loss=progress.first_loss,
            final_loss=sum(losses) / len(losses),
            tokens=progress.tokens,
            tokens_per_second=progress.tokens / progress.seconds,
            adapter_path=str(self.paths.adapter.relative_to(self.paths.shared)),
            adapter_digest=write_adapter(self.paths.adapter, *self._peft_adapter()),
        )

    def _peft_adapter(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        base_model, _, revision = self.prepared.model.partition("@")
        weights = to_peft(dict(self._adapter), self._shape, self._interleaved_rotary)
        return weights, peft_config(self.job.spec.lora, base_model, revision or None)
