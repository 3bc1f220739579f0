"""The whole training run, from top to bottom, as each process of the gang lives through it."""

import hashlib
import math
import time
from dataclasses import dataclass
from typing import NoReturn

import torch

from finetune_trainer.architecture import read_shape
from finetune_trainer.checkpoint.background import Checkpoints
from finetune_trainer.checkpoint.content import Progress
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import PreparedReport, Reason, TrainedReport
from finetune_trainer.data.batch import make_batch
from finetune_trainer.data.order import EMPTY_SLOT, Indices, SequenceOrder, rank_share
from finetune_trainer.data.packed import PackedSequences
from finetune_trainer.errors import TrainerError
from finetune_trainer.exporter import start_exporter
from finetune_trainer.gang import Node, Place, StopVote, broadcast, sum_over_gang
from finetune_trainer.metrics import StepRecord
from finetune_trainer.reporting import open_reporter
from finetune_trainer.state import TrainingState
from finetune_trainer.trainable import TrainableModel, build_trainable, length_multiple

NUM_RECENT_LOSSES = 10


def train(job: TrainerJob, paths: JobPaths, place: Place, node: Node) -> TrainedReport:
    """Fine-tune the prepared model on the prepared data, and leave the adapter on the shared filesystem.

    Runs in every process of an initialised process group; all of them return the same report.

    Raises:
        TrainerError: with a reason of the contract; other errors are explained by `launch`.
    """
    exporter = start_exporter(place, node.metrics_port)
    prepared = read_prepared(job, paths, place)
    data = PackedSequences.open(paths.shared / prepared.data_path)
    shape = read_shape(paths.shared / prepared.model_path)

    model = build_trainable(job, paths, place, prepared, shape)
    state = TrainingState(job, paths, place, prepared, shape, model)
    state.resume()

    with (
        open_reporter(state, exporter, node) as reporter,
        state.open_checkpoints(reporter.record_checkpoint) as checkpoints,
    ):
        for line in (*state.resumed_from.damages, describe_start(state)):
            reporter.say(line)
        run = Run(state, model, data, checkpoints, StopVote(node.stop.is_made))
        node.stop.training_begins()
        for step in range(state.progress.step, prepared.total_steps):
            record = train_step(run, step)
            if record is None:
                leave_checkpoint(run)
            reporter.record_step(record)
            checkpoints.tell()
            if record.step % job.spec.checkpoint.every_steps == 0 or record.step == prepared.total_steps:
                checkpoints.take(state.progress)
        run.vote.close()
        checkpoints.wait()
        report = save_result(state)
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


@dataclass(frozen=True)
class Run:
    """What a step needs."""

    state: TrainingState
    model: TrainableModel
    data: PackedSequences
    checkpoints: Checkpoints
    vote: StopVote


def train_step(run: Run, step: int) -> StepRecord | None:
    """Do one optimizer step: gradients of the global batch, summed over the processes, clipped, applied.

    Returns None when the processes have agreed to stop; adapter and optimizer are then as the step before left them.

    Raises:
        TrainerError: DIVERGED; adapter and optimizer are then as the step before left them.
    """
    started = time.monotonic()
    state = run.state
    training, prepared = state.job.spec.training, state.prepared
    epoch, step_of_epoch = divmod(step, prepared.steps_per_epoch)
    order = SequenceOrder(len(run.data), prepared.global_batch, training.seed)
    indices = order.global_batch_indices(epoch, step_of_epoch)

    state.gradients.zero()
    run.model.begin_step()
    share = compute_gradients(run, indices, step)
    if share is None:
        return None
    sum_over_gang(state.gradients.buffer)
    norm = state.gradients.clip(training.optimizer.max_gradient_norm)
    peak = training.optimizer.learning_rate
    rate = learning_rate(step, peak, prepared.warmup_steps, prepared.total_steps)
    run.checkpoints.wait_before_change()
    state.apply_gradients(rate, norm)
    # Here, after all its work, is the one place of a step where the GPU is waited for.
    loss, num_tokens, gradient_norm = gather_numbers(share, norm)
    refuse_divergence(state, step, rate, loss, gradient_norm)

    seconds = time.monotonic() - started
    state.progress = advance(state.progress, loss, num_tokens, seconds)
    return StepRecord(
        step=step + 1,
        epoch=(step + 1) / prepared.steps_per_epoch,
        loss=loss,
        learning_rate=rate,
        gradient_norm=gradient_norm,
        tokens=num_tokens,
        tokens_per_second=num_tokens / seconds,
        seconds=seconds,
        data_wait_seconds=share.data_wait_seconds,
        timestamp_seconds=time.time(),
    )


@dataclass(frozen=True)
class Share:
    """What one process adds to a step, besides its gradients."""

    loss: torch.Tensor  # its part of the global batch's mean loss, scalar
    num_tokens: int
    data_wait_seconds: float


def compute_gradients(run: Run, indices: Indices, step: int) -> Share | None:
    """Run forward and backward over this process' micro-batches; gradients add up in `state.gradients`.

    Each loss is divided by the targets of the whole global batch, known beforehand, so that every target counts the
    same on any number of processes, and sums over processes are means over the batch. Returns None, between two
    micro-batches, when the processes have agreed to stop.
    """
    training, place, data = run.state.job.spec.training, run.state.place, run.data
    num_targets = max(int(data.num_targets[indices].sum()), 1)
    loss = torch.zeros((), device=place.device)
    num_tokens, waited = 0, 0.0
    for slots in rank_share(indices, place.rank, place.world_size, training.batch_size, training.gradient_accumulation):
        if run.vote.is_stop_agreed():
            return None
        asked = time.monotonic()
        rows = [None if index == EMPTY_SLOT else data.sequence(int(index)) for index in slots]
        batch = make_batch(rows, length_multiple(place.device.type, training))
        waited += time.monotonic() - asked
        # Dropout depends on what is computed, not on what was computed before: a resumed run, or one on other
        # processes, drops the same.
        torch.manual_seed(random_stream(training.seed, step, int(slots[0])))
        micro_loss = run.model(batch.to(place.device)) / num_targets
        micro_loss.backward()
        loss += micro_loss.detach()
        num_tokens += batch.num_tokens
    return Share(loss, num_tokens, waited)


def gather_numbers(share: Share, gradient_norm: torch.Tensor) -> tuple[float, int, float]:
    """Return the loss and the tokens of the global batch, and the norm of its gradient, as numbers."""
    num_tokens = torch.tensor(share.num_tokens, dtype=torch.float64, device=share.loss.device)
    sums = torch.stack([share.loss.double(), num_tokens])
    sum_over_gang(sums)
    loss, total_tokens, norm = torch.cat([sums, gradient_norm.double()[None]]).tolist()
    return loss, int(total_tokens), norm


def learning_rate(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate of a step, counted from 0: linear to the peak, then a cosine to zero at the end."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def refuse_divergence(state: TrainingState, step: int, rate: float, loss: float, gradient_norm: float) -> None:
    """Stop a run whose loss or gradient is no number any more.

    Raises:
        TrainerError: DIVERGED.
    """
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return
    newest = state.newest_checkpoint()
    name = None if newest is None else newest.name
    raise TrainerError(
        Reason.DIVERGED,
        f"step {step + 1}: loss is {loss}, gradient norm is {gradient_norm}, learning rate was {rate:.1e}. "
        f"The last good checkpoint is {name or 'none'}. Lower training.optimizer.learningRate, raise "
        "training.schedule.warmupSteps, or look for odd rows in the data",
        step=step,
        checkpoint=name,
    )


def advance(progress: Progress, loss: float, num_tokens: int, seconds: float) -> Progress:
    """Return the progress after one more step."""
    return Progress(
        step=progress.step + 1,
        tokens=progress.tokens + num_tokens,
        seconds=progress.seconds + seconds,
        first_loss=loss if progress.step == 0 else progress.first_loss,
        recent_losses=(*progress.recent_losses, loss)[-NUM_RECENT_LOSSES:],
    )


def leave_checkpoint(run: Run) -> NoReturn:
    """Leave a checkpoint of the last whole step, because the gang was asked to stop.

    Raises:
        TrainerError: TERMINATED, on every process, when the checkpoint is complete.
    """
    progress, total_steps = run.state.progress, run.state.prepared.total_steps
    run.vote.close()
    run.checkpoints.take(progress)
    run.checkpoints.wait()
    broadcast(None)  # the others wait for rank 0, which their agents would end otherwise
    raise TrainerError(
        Reason.TERMINATED,
        f"asked to stop: {progress.step} of {total_steps} steps are done, and will not have to be done again",
        step=progress.step,
    )


def save_result(state: TrainingState) -> TrainedReport:
    """Write the adapter, and return the report of the run on every process."""
    report = broadcast(state.write_result() if state.place.rank == 0 else None)
    assert report is not None
    return report


def random_stream(*parts: int) -> int:
    """Return a seed that depends on all parts."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def describe_start(state: TrainingState) -> str:
    """Return what is about to be trained, as a line for people."""
    prepared, place, step = state.prepared, state.place, state.progress.step
    start = f"resuming at step {step} of {prepared.total_steps}" if step else f"training {prepared.total_steps} steps"
    return (
        f"{start}: {prepared.model}, "
        f"{prepared.trainable_parameters:,} trainable of {prepared.parameters:,} parameters, {place.world_size} "
        f"processes on {place.num_nodes} nodes ({place.device.type}, {prepared.precision}, {prepared.kernels} kernels, "
        f"sharding {prepared.sharding}), global batch {prepared.global_batch}"
    )
