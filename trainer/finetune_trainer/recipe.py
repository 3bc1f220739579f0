"""The whole training run, from top to bottom, as each process of the gang lives through it."""

import hashlib
import math
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from prometheus_client import CollectorRegistry

from finetune_trainer.architecture import ModelShape, read_shape
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
from finetune_trainer.contract.spec import Sharding
from finetune_trainer.contract.termination import PreparedReport, Reason, TrainedReport
from finetune_trainer.data.batch import make_batch
from finetune_trainer.data.order import EMPTY_SLOT, Indices, SequenceOrder, rank_share
from finetune_trainer.data.packed import PackedSequences
from finetune_trainer.errors import TrainerError
from finetune_trainer.lora import adapter_parameters, add_adapters, from_peft, initialise_adapters, peft_config, to_peft
from finetune_trainer.metrics import NodeCollector, StepRecord, TrainingMetrics, serve
from finetune_trainer.model import CausalDecoder, build_model, has_interleaved_rotary, read_weights
from finetune_trainer.reporting import RankZeroReporter, Reporter
from finetune_trainer.runlog import RunLog
from finetune_trainer.sharding import AdapterGradients, fill_model, make_mesh, shard_model
from finetune_trainer.tracking import TrackingError, WandbTracker

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# The blocks of FlexAttention are so long; on a CPU each token of padding costs time and gains nothing.
LENGTH_MULTIPLES = {"cuda": 128, "cpu": 1}
NUM_RECENT_LOSSES = 10


@dataclass(frozen=True)
class Place:
    """Where a process stands in the gang."""

    rank: int
    local_rank: int
    world_size: int
    processes_per_node: int
    device: torch.device

    @property
    def num_nodes(self) -> int:
        """Nodes of the gang."""
        return self.world_size // self.processes_per_node


def train(job: TrainerJob, paths: JobPaths, place: Place, metrics_port: int) -> TrainedReport:
    """Fine-tune the prepared model on the prepared data, and leave the adapter on the shared filesystem.

    Runs in every process of an initialised process group; all of them return the same report.

    Raises:
        TrainerError: with a reason of the contract; other errors are explained by `launch`.
    """
    metrics = start_exporter(place, metrics_port)
    prepared = read_prepared(job, paths, place)
    data = PackedSequences.open(paths.shared / prepared.data_path)
    shape = read_shape(paths.shared / prepared.model_path)

    run = Run(job, paths, place, prepared, shape, build(job, paths, place, prepared, shape))
    run.resume()
    with ExitStack() as stack:
        reporter = open_reporter(run, metrics, stack) if place.rank == 0 else Reporter()
        reporter.say(describe_start(run))
        for step in range(run.progress.step, prepared.total_steps):
            record = train_step(run, data, step)
            reporter.record_step(record)
            if record.step % job.spec.checkpoint.every_steps == 0 or record.step == prepared.total_steps:
                save_checkpoint(run, reporter)
        report = save_result(run)
        reporter.finish(report)
    return report


def read_prepared(job: TrainerJob, paths: JobPaths, place: Place) -> PreparedReport:
    """Read what prepare found and resolved.

    Raises:
        TrainerError: prepare has not run, or for another number of processes.
    """
    try:
        prepared = PreparedReport.model_validate_json(paths.prepared.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainerError(
            Reason.DATA_UNAVAILABLE, f"{paths.prepared}: cannot be read ({error}); run prepare for this job first"
        ) from error
    if (prepared.world_size, prepared.global_batch) != (place.world_size, job.spec.global_batch):
        raise TrainerError(
            Reason.INVALID_SPEC,
            f"prepared for {prepared.world_size} processes and a global batch of {prepared.global_batch}, but "
            f"{place.world_size} processes train with a global batch of {job.spec.global_batch}; run prepare again",
        )
    return prepared


def build(job: TrainerJob, paths: JobPaths, place: Place, prepared: PreparedReport, shape: ModelShape) -> CausalDecoder:
    """Build the model without memory, shard it, then fill in weights: no process ever holds more than its share."""
    training = job.spec.training
    multiple = LENGTH_MULTIPLES[place.device.type]
    max_length = -(-training.max_sequence_length // multiple) * multiple
    model = build_model(shape, DTYPES[prepared.precision], max_length, training.activation_checkpointing)
    add_adapters(model, job.spec.lora)
    mesh = make_mesh(Sharding(prepared.sharding), place.device.type, place.num_nodes, place.processes_per_node)
    shard_model(model, mesh)
    fill_model(model, read_weights(paths.shared / prepared.model_path, shape), place.device)
    model.fill_rotary_cache(place.device)
    initialise_adapters(model, training.seed)
    return model.train()


class Run:
    """What changes while a run goes on: the adapter, the optimizer, and how far they have come."""

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
        self.shape = shape
        self.model = model
        self.adapter = adapter_parameters(model)
        self.gradients = AdapterGradients(self.adapter.values())
        settings = job.spec.training.optimizer
        self.optimizer = torch.optim.AdamW(
            self.adapter.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.progress = Progress()

    @property
    def settings(self) -> dict[str, Any]:
        """What has to be equal for a run to go on from another's checkpoint, by the names of the manifest."""
        lora = self.job.spec.lora.model_dump(mode="json", by_alias=True)
        training = self.job.spec.training.model_dump(
            mode="json",
            by_alias=True,
            exclude={"batch_size", "gradient_accumulation", "activation_checkpointing", "log_every_steps"},
        )
        return {
            "model": self.prepared.model,
            "data": self.prepared.data_path,
            "global batch": self.prepared.global_batch,
            "total steps": self.prepared.total_steps,
            **{f"lora.{name}": value for name, value in lora.items()},
            **{f"training.{name}": value for name, value in training.items()},
        }

    def resume(self) -> None:
        """Go on from the newest checkpoint of this job, if there is one. All processes take the one rank 0 sees."""
        newest = broadcast(next(iter(find_checkpoints(self.paths.checkpoints)), None))
        if newest is None:
            return
        checkpoint = read_checkpoint(newest, self.settings)
        interleaved = has_interleaved_rotary(self.shape.family)
        values = from_peft(checkpoint.adapter, self.adapter, self.shape, interleaved)
        with torch.no_grad():
            for name, parameter in self.adapter.items():
                parameter.copy_(values[name])
        restore_optimizer(self.optimizer, self.adapter, checkpoint.optimizer)
        self.progress = checkpoint.progress

    def peft_adapter(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the adapter as PEFT keeps it: tensors and configuration."""
        base_model, _, revision = self.prepared.model.partition("@")
        weights = to_peft(dict(self.adapter), self.shape, has_interleaved_rotary(self.shape.family))
        return weights, peft_config(self.job.spec.lora, base_model, revision or None)


def train_step(run: Run, data: PackedSequences, step: int) -> StepRecord:
    """Do one optimizer step: gradients of the global batch, summed over the processes, clipped, applied.

    Raises:
        TrainerError: DIVERGED, before anything is changed.
    """
    started = time.monotonic()
    spec, prepared = run.job.spec, run.prepared
    epoch, step_of_epoch = divmod(step, prepared.steps_per_epoch)
    order = SequenceOrder(len(data), prepared.global_batch, spec.training.seed)
    indices = order.global_batch_indices(epoch, step_of_epoch)

    run.gradients.zero()
    share = compute_gradients(run, data, indices, step)
    run.gradients.sum_over_processes()
    norm = run.gradients.clip(spec.training.optimizer.max_gradient_norm)
    loss, num_tokens = sum_over_processes(share, run.place.device)

    peak = spec.training.optimizer.learning_rate
    rate = learning_rate(step, peak, prepared.warmup_steps, prepared.total_steps)
    refuse_divergence(run, step, rate, loss, float(norm))
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()

    seconds = time.monotonic() - started
    progress = run.progress
    run.progress = Progress(
        step=step + 1,
        tokens=progress.tokens + int(num_tokens),
        seconds=progress.seconds + seconds,
        first_loss=loss if step == 0 else progress.first_loss,
        recent_losses=(*progress.recent_losses, loss)[-NUM_RECENT_LOSSES:],
    )
    return StepRecord(
        step=step + 1,
        epoch=(step + 1) / prepared.steps_per_epoch,
        loss=loss,
        learning_rate=rate,
        gradient_norm=float(norm),
        tokens=int(num_tokens),
        tokens_per_second=num_tokens / seconds,
        seconds=seconds,
        data_wait_seconds=share.data_wait_seconds,
        timestamp_seconds=time.time(),
    )


@dataclass(frozen=True)
class Share:
    """What one process adds to a step."""

    loss: torch.Tensor  # its part of the global batch's mean loss, scalar
    num_tokens: int
    data_wait_seconds: float


def compute_gradients(run: Run, data: PackedSequences, indices: Indices, step: int) -> Share:
    """Run forward and backward over this process' micro-batches; gradients add up in `run.gradients`.

    Each loss is divided by the targets of the whole global batch, known beforehand, so that every target counts the
    same on any number of processes, and sums over processes are means over the batch.
    """
    training, place = run.job.spec.training, run.place
    num_targets = max(int(data.num_targets[indices].sum()), 1)
    loss = torch.zeros((), device=place.device)
    num_tokens, waited = 0, 0.0
    shares = rank_share(indices, place.rank, place.world_size, training.batch_size, training.gradient_accumulation)
    for slots in shares:
        asked = time.monotonic()
        rows = [None if index == EMPTY_SLOT else data.sequence(int(index)) for index in slots]
        batch = make_batch(rows, LENGTH_MULTIPLES[place.device.type])
        waited += time.monotonic() - asked
        # Dropout depends on what is computed, not on what was computed before: a resumed run, or one on other
        # processes, drops the same.
        torch.manual_seed(random_stream(training.seed, step, int(slots[0])))
        micro_loss = run.model(batch.to(place.device)) / num_targets
        micro_loss.backward()
        loss += micro_loss.detach()
        num_tokens += batch.num_tokens
    return Share(loss, num_tokens, waited)


def sum_over_processes(share: Share, device: torch.device) -> tuple[float, float]:
    """Return the mean loss and the tokens of the global batch. Waits for the GPU: once a step, after all its work."""
    sums = torch.stack([share.loss.double(), torch.tensor(share.num_tokens, dtype=torch.float64, device=device)])
    dist.all_reduce(sums)
    loss, num_tokens = sums.tolist()
    return loss, num_tokens


def learning_rate(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate of a step, counted from 0: linear to the peak, then a cosine to zero at the end."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def refuse_divergence(run: Run, step: int, rate: float, loss: float, gradient_norm: float) -> None:
    """Stop a run whose loss or gradient is no number any more.

    Raises:
        TrainerError: DIVERGED.
    """
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return
    newest = next(iter(find_checkpoints(run.paths.checkpoints)), None)
    raise TrainerError(
        Reason.DIVERGED,
        f"step {step + 1}: loss is {loss}, gradient norm is {gradient_norm}, learning rate was {rate:.1e}. "
        f"The last good checkpoint is {newest.name if newest else 'none'}. Lower training.optimizer.learningRate, "
        "raise training.schedule.warmupSteps, or look for odd rows in the data",
        step=step,
        checkpoint=newest.name if newest else None,
    )


def save_checkpoint(run: Run, reporter: Reporter) -> None:
    """Write a checkpoint of the last step; rank 0 alone, as every process holds the same."""
    if run.place.rank != 0:
        return
    started = time.monotonic()
    weights, config = run.peft_adapter()
    checkpoint = Checkpoint(
        progress=run.progress,
        settings=run.settings,
        adapter=weights,
        adapter_config=config,
        optimizer=optimizer_tensors(run.optimizer, run.adapter),
    )
    directory = write_checkpoint(run.paths.checkpoints, checkpoint, run.job.spec.checkpoint.keep)
    reporter.record_checkpoint(run.progress.step, directory, time.monotonic() - started)


def save_result(run: Run) -> TrainedReport:
    """Write the adapter, and return the report of the run on every process."""
    report = None
    if run.place.rank == 0:
        progress, losses = run.progress, run.progress.recent_losses
        report = TrainedReport(
            steps=progress.step,
            first_loss=progress.first_loss,
            final_loss=sum(losses) / len(losses),
            tokens=progress.tokens,
            tokens_per_second=progress.tokens / progress.seconds,
            adapter_path=str(run.paths.adapter.relative_to(run.paths.shared)),
            adapter_digest=write_adapter(run.paths.adapter, *run.peft_adapter()),
        )
    return broadcast(report)


def broadcast(value: Any) -> Any:
    """Return rank 0's value on every process."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def random_stream(*parts: int) -> int:
    """Return a seed that depends on all parts."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def start_exporter(place: Place, port: int) -> TrainingMetrics | None:
    """Serve the node's series from local rank 0, the training's too from global rank 0. Returns those of rank 0."""
    if place.local_rank != 0:
        return None
    registry = CollectorRegistry()
    is_gpu = place.device.type == "cuda"
    peak = (lambda: {0: torch.cuda.max_memory_allocated(place.device)}) if is_gpu else dict[int, int]
    registry.register(NodeCollector(is_gpu, peak))
    metrics = TrainingMetrics(registry) if place.rank == 0 else None
    try:
        serve(registry, port)
    except OSError as error:
        # On a laptop another job may have the port; in a pod nothing has.
        print(f"warning: metrics are not served on port {port}: {error.strerror}", flush=True)
    return metrics


def open_reporter(run: Run, metrics: TrainingMetrics | None, stack: ExitStack) -> Reporter:
    """Open the log files, and the run on Weights & Biases where the job asks for one."""
    assert metrics is not None
    job = run.job
    log = stack.enter_context(RunLog(run.paths.logs, run.progress.step))
    tracker = None
    if job.spec.tracking.wandb is not None:
        try:
            tracker = WandbTracker(
                job.spec.tracking.wandb, job.name, f"{job.name}-{job.uid}", run.settings, run.paths.logs, os.environ
            )
        except TrackingError as error:
            log.say(f"warning: not reporting to Weights & Biases: {error}")
    every = job.spec.training.log_every_steps
    return RankZeroReporter(log, metrics, tracker, run.progress.step, run.prepared.total_steps, every)


def describe_start(run: Run) -> str:
    """Return what is about to be trained, as a line for people."""
    prepared, place = run.prepared, run.place
    start = f"resuming at step {run.progress.step} of" if run.progress.step else "starting"
    return (
        f"{start} {prepared.total_steps} steps: {prepared.model}, {prepared.trainable_parameters:,} trainable of "
        f"{prepared.parameters:,} parameters, {place.world_size} processes on {place.num_nodes} nodes "
        f"({place.device.type}, {prepared.precision}, sharding {prepared.sharding}), "
        f"global batch {prepared.global_batch}"
    )
