"""The whole training run, from top to bottom, as each process of the gang lives through it."""

import hashlib
import math
import time
from dataclasses import dataclass
from typing import NoReturn

import torch

from finetune_trainer.architecture import ModelShape, read_shape
from finetune_trainer.checkpoint.background import Checkpoints
from finetune_trainer.checkpoint.content import Progress
from finetune_trainer.clock import StepClock, Times, lay_out, read_rows, tell_waiting
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.series import Phase
from finetune_trainer.contract.termination import PreparedReport, Reason, TrainedReport
from finetune_trainer.data.batch import make_batch
from finetune_trainer.data.order import EMPTY_SLOT, Indices, SequenceOrder, rank_share
from finetune_trainer.data.packed import PackedSequences
from finetune_trainer.errors import TrainerError
from finetune_trainer.exporter import start_exporter
from finetune_trainer.flops import peak_flops, training_flops
from finetune_trainer.gang import Node, Place, StopVote, broadcast, sum_over_gang
from finetune_trainer.metrics import StepRecord
from finetune_trainer.passes import Passes
from finetune_trainer.profiling import PROFILE_DIRECTORY, StepProfiler
from finetune_trainer.reporting import Reporter, open_reporter
from finetune_trainer.state import TrainingState
from finetune_trainer.trainable import TrainableModel, build_trainable, length_multiple, open_passes

NUM_RECENT_LOSSES = 10


def train(job: TrainerJob, paths: JobPaths, place: Place, node: Node) -> TrainedReport:
    """Fine-tune the prepared model on the prepared data, and leave the adapter on the shared filesystem.

    Runs in every process of an initialised process group; all of them return the same report.

    Raises:
        TrainerError: with a reason of the contract; other errors are explained by `launch`.
    """
    exporter = start_exporter(place, node.metrics_port, paths.filesystems)
    prepared = read_prepared(job, paths, place)
    data = PackedSequences.open(paths.shared / prepared.data_path)
    shape = read_shape(paths.shared / prepared.model_path)

    clock = StepClock(place.device)
    model = build_trainable(job, paths, place, prepared, shape, clock)
    state = TrainingState(job, paths, place, prepared, shape, model)
    state.resume()

    with (
        open_reporter(state, exporter, node) as reporter,
        state.open_checkpoints(reporter.record_checkpoint) as checkpoints,
    ):
        for line in (*state.resumed_from.damages, describe_start(state)):
            reporter.say(line)
        passes = open_passes(job, place, prepared, shape, model)
        run = Run(state, model, passes, shape, data, checkpoints, StopVote(node.stop.is_made), clock)
        profiler = open_profiler(state, reporter)
        node.stop.training_begins()
        for step in range(state.progress.step, prepared.total_steps):
            profiler.before_step(step + 1)
            done = train_step(run, step)
            if done is None:
                leave_checkpoint(run)
            record = done.record
            reporter.record_step(record)
            reporter.record_times(done.times_before)
            profiler.after_step(record.step)
            checkpoints.tell()
            if record.step % job.spec.checkpoint.every_steps == 0 or record.step == prepared.total_steps:
                with run.clock.checkpoint_between_steps():
                    checkpoints.take(state.progress)
        run.vote.close()
        checkpoints.wait()
        report = save_result(state)
        reporter.finish(report)
    return report


def open_profiler(state: TrainingState, reporter: Reporter) -> StepProfiler:
    """Return what traces the steps that the job asks for: in rank 0 only, whose network disk is always there."""
    wanted = state.job.spec.training.profile if state.place.rank == 0 else None
    return StepProfiler(wanted, state.paths.logs / PROFILE_DIRECTORY, reporter.say)


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
    passes: Passes
    shape: ModelShape
    data: PackedSequences
    checkpoints: Checkpoints
    vote: StopVote
    clock: StepClock


@dataclass(frozen=True)
class Step:
    """An optimizer step that was done."""

    record: StepRecord
    times_before: list[Times]  # what the step before went to, for each process; who waited is known a step later


def train_step(run: Run, step: int) -> Step | None:
    """Do one optimizer step: gradients of the global batch, summed over the processes, clipped, applied.

    Returns None when the processes have agreed to stop; adapter and optimizer are then as the step before left them.

    Raises:
        TrainerError: DIVERGED; adapter and optimizer are then as the step before left them.
    """
    started = time.monotonic()
    state, clock = run.state, run.clock
    clock.begin()
    training, prepared = state.job.spec.training, state.prepared
    epoch, step_of_epoch = divmod(step, prepared.steps_per_epoch)
    order = SequenceOrder(len(run.data), prepared.global_batch, training.seed)
    indices = order.global_batch_indices(epoch, step_of_epoch)

    state.gradients.zero()
    run.model.begin_step()
    share = compute_gradients(run, indices, step)
    if share is None:
        return None
    with clock.phase(Phase.COMMUNICATION):
        sum_over_gang(state.gradients.buffer)
    norm = state.gradients.clip(training.optimizer.max_gradient_norm)
    peak = training.optimizer.learning_rate
    rate = learning_rate(step, peak, prepared.warmup_steps, prepared.total_steps)
    with clock.phase(Phase.CHECKPOINT):
        run.checkpoints.wait_before_change()
    state.apply_gradients(rate, norm)
    # Here, after all its work, is the one place of a step where the GPU is waited for.
    numbers = gather_numbers(run, share, norm)
    refuse_divergence(state, step, rate, numbers.loss, numbers.gradient_norm)

    seconds = time.monotonic() - started
    state.progress = advance(state.progress, numbers.loss, numbers.num_tokens, seconds)
    times = clock.read()
    record = StepRecord(
        step=step + 1,
        epoch=(step + 1) / prepared.steps_per_epoch,
        loss=numbers.loss,
        learning_rate=rate,
        gradient_norm=numbers.gradient_norm,
        tokens=numbers.num_tokens,
        tokens_per_second=numbers.num_tokens / seconds,
        seconds=seconds,
        compute_seconds=times[Phase.COMPUTE],
        data_wait_seconds=times[Phase.DATA],
        communication_seconds=times[Phase.COMMUNICATION],
        checkpoint_seconds=times[Phase.CHECKPOINT],
        model_flops_utilization=flops_utilization(numbers.flops / seconds, state.place),
        timestamp_seconds=time.time(),
    )
    return Step(record, numbers.times_before)


@dataclass(frozen=True)
class Share:
    """What one process adds to a step, besides its gradients."""

    loss: torch.Tensor  # its part of the global batch's mean loss, scalar
    num_tokens: int
    flops: float


def compute_gradients(run: Run, indices: Indices, step: int) -> Share | None:
    """Run forward and backward over this process' micro-batches; gradients add up in `state.gradients`.

    Each loss is divided by the targets of the whole global batch, known beforehand, so that every target counts the
    same on any number of processes, and sums over processes are means over the batch. Returns None, between two
    micro-batches, when the processes have agreed to stop.
    """
    state, data, clock = run.state, run.data, run.clock
    training, place = state.job.spec.training, state.place
    num_targets = max(int(data.num_targets[indices].sum()), 1)
    loss = torch.zeros((), device=place.device)
    num_tokens, flops = 0, 0.0
    for slots in rank_share(indices, place.rank, place.world_size, training.batch_size, training.gradient_accumulation):
        with clock.phase(Phase.COMMUNICATION):
            is_stop_agreed = run.vote.is_stop_agreed()
        if is_stop_agreed:
            return None
        with clock.phase(Phase.DATA):
            rows = [None if index == EMPTY_SLOT else data.sequence(int(index)) for index in slots]
            batch = make_batch(rows, length_multiple(place.device.type, training)).to(place.device)
        # Dropout depends on what is computed, not on what was computed before: a resumed run, or one on other
        # processes, drops the same.
        torch.manual_seed(random_stream(training.seed, step, int(slots[0])))
        loss += run.passes.add_gradients(batch, num_targets)
        num_tokens += batch.num_tokens
        flops += training_flops(run.shape, state.job.spec.lora, batch.num_tokens, len(batch.targets), batch.num_pairs)
    return Share(loss, num_tokens, flops)


@dataclass(frozen=True)
class Numbers:
    """What all processes know of a step when it is done."""

    loss: float  # mean over the targets of the global batch
    num_tokens: int
    flops: float  # that the global batch needed
    gradient_norm: float
    times_before: list[Times]  # what the step before went to, by rank


def gather_numbers(run: Run, share: Share, gradient_norm: torch.Tensor) -> Numbers:
    """Sum up what the processes know, wait until the device has done the step, and return its numbers."""
    place, clock = run.state.place, run.clock
    rows = lay_out(clock.last, place.rank, place.world_size)
    own = torch.tensor([share.num_tokens, share.flops, *rows], dtype=torch.float64)
    sums = torch.cat([share.loss.double()[None], own.to(place.device, non_blocking=True)])
    with clock.phase(Phase.COMMUNICATION):
        sum_over_gang(sums)
    numbers = torch.cat([sums, gradient_norm.double()[None]])
    clock.end()
    loss, num_tokens, flops, *rows, norm = numbers.tolist()
    return Numbers(loss, int(num_tokens), flops, norm, tell_waiting(read_rows(rows)))


def flops_utilization(flops_a_second: float, place: Place) -> float | None:
    """Return which share of what the gang's GPUs could do that is; None where that is not known."""
    if place.device.type != "cuda":
        return None
    peak = peak_flops(torch.cuda.get_device_name(place.device))
    return None if peak is None else flops_a_second / (peak * place.world_size)


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
