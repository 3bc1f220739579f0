"""What a run tells while it goes on, and to whom: people, Prometheus, Weights & Biases.

Global rank 0 speaks for all, local rank 0 for its node's processes; every other process has a reporter that says
nothing, so the recipe need not ask who it is.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from finetune_trainer.checkpoint.background import Written
from finetune_trainer.checkpoint.manifest import describe
from finetune_trainer.clock import Times
from finetune_trainer.contract import environment as names
from finetune_trainer.contract.progress import ProgressReport
from finetune_trainer.contract.report import rfc3339
from finetune_trainer.contract.termination import TrainedReport
from finetune_trainer.exporter import Exporter, RankZeroExporter
from finetune_trainer.gang import Node
from finetune_trainer.kernels.fallback import told_fallbacks
from finetune_trainer.metrics import StepRecord
from finetune_trainer.runlog import RunLog, describe_step
from finetune_trainer.state import TrainingState
from finetune_trainer.tracking import TrackingError, WandbTracker


class Reporter:
    """Tells nobody: the reporter of processes whose local rank is not 0."""

    def say(self, line: str) -> None:
        """Tell people something."""

    def record_step(self, record: StepRecord) -> None:
        """Tell that a step was done."""

    def record_times(self, times_by_rank: Sequence[Times]) -> None:
        """Tell what the time of a step went to, for each process of the gang."""

    def record_checkpoint(self, written: Written) -> None:
        """Tell that a checkpoint is complete."""

    def finish(self, report: TrainedReport) -> None:
        """Tell how the run ended."""


class NodeReporter(Reporter):
    """Tells Prometheus of a node's processes: the reporter of local rank 0."""

    def __init__(self, exporter: Exporter) -> None:
        self._processes = exporter.processes

    def record_times(self, times_by_rank: Sequence[Times]) -> None:
        """Tell what the time of a step went to, for each process of this node."""
        self._processes.record_times(times_by_rank)


class RankZeroReporter(NodeReporter):
    """Tells everybody.

    Args:
        log: the log files.
        exporter: what Prometheus and the operator see.
        tracker: Weights & Biases, where the job asks for it.
        begun: where the training begins, from the first step or from a checkpoint.
        steps_per_epoch: steps of a pass over the data.
        leave_progress: keeps the last progress for the case that this process dies.
        log_every_steps: steps between two lines for people.
    """

    def __init__(
        self,
        log: RunLog,
        exporter: RankZeroExporter,
        tracker: WandbTracker | None,
        begun: ProgressReport,
        steps_per_epoch: int,
        log_every_steps: int,
        leave_progress: Callable[[ProgressReport], None] = lambda _: None,
    ) -> None:
        super().__init__(exporter)
        self._log = log
        self._exporter = exporter
        self._tracker = tracker
        self._progress = begun
        self._steps_per_epoch = steps_per_epoch
        self._log_every_steps = log_every_steps
        self._seconds = 0.0
        self._told_fallbacks: set[str] = set()
        exporter.metrics.start(begun.step, begun.total_steps, _saved_until(begun))
        self._leave_progress = leave_progress
        self._publish()

    def say(self, line: str) -> None:
        """Tell people something."""
        self._log.say(line)

    def record_step(self, record: StepRecord) -> None:
        """Tell that a step was done; people hear of the first, the last, and each so many."""
        self._exporter.metrics.record_step(record)
        self._publish(
            step=record.step,
            epoch=(record.step - 1) // self._steps_per_epoch + 1,
            loss=record.loss,
            learning_rate=record.learning_rate,
            tokens_per_second=record.tokens_per_second,
            last_step_time=rfc3339(datetime.fromtimestamp(record.timestamp_seconds, UTC)),
        )
        self._log.record_step(record)
        self._track(lambda tracker: tracker.record_step(record))
        self._seconds += record.seconds
        is_due = record.step % self._log_every_steps == 0
        resumed_step, total_steps = self._progress.resumed_from_step, self._progress.total_steps
        for name, sentence in told_fallbacks().items():
            if name not in self._told_fallbacks:
                self._told_fallbacks.add(name)
                self.say(f"warning: {sentence}")
        if is_due or record.step in (resumed_step + 1, total_steps):
            seconds_a_step = self._seconds / (record.step - resumed_step)
            self.say(describe_step(record, total_steps, seconds_a_step))

    def record_checkpoint(self, written: Written) -> None:
        """Tell that a checkpoint is complete."""
        report = written.report
        taken_at = datetime.fromisoformat(report.time).timestamp()
        self._exporter.metrics.record_checkpoint(report.step, written.stalled_seconds, taken_at)
        self._publish(checkpoint=report)
        self.say(
            f"checkpoint of step {report.step} written to {report.path} in {written.write_seconds:.1f} s; the training "
            f"stood still for {written.stalled_seconds:.3f} s"
        )

    def finish(self, report: TrainedReport) -> None:
        """Tell how the run ended."""
        self._track(lambda tracker: tracker.finish(report.model_dump()))
        self.say(
            f"trained {report.steps} steps: loss {report.first_loss:.4f} -> {report.final_loss:.4f}, "
            f"{report.tokens} tokens, {report.tokens_per_second:.0f} tokens/s; adapter in {report.adapter_path}"
        )

    def _publish(self, **changes: object) -> None:
        changes["filesystems"] = self._exporter.free_space.reports
        self._progress = self._progress.model_copy(update=changes)
        self._exporter.progress.publish(self._progress)
        self._leave_progress(self._progress)

    def _track(self, tell: Callable[[WandbTracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            tell(self._tracker)
        except TrackingError as error:
            self._tracker = None
            self.say(f"warning: no longer reporting to Weights & Biases: {error}")


@contextmanager
def open_reporter(state: TrainingState, exporter: Exporter | None, node: Node) -> Iterator[Reporter]:
    """On rank 0, open the log files, and the run on Weights & Biases where the job asks for one.

    Args:
        state: of the run, resumed already.
        exporter: of the node; only its local rank 0 has one to publish to.
        node: of the process.

    Raises:
        TrainerError: STORAGE_FULL or STORAGE_NOT_WRITABLE.
    """
    if not isinstance(exporter, RankZeroExporter):
        yield Reporter() if exporter is None else NodeReporter(exporter)
        return
    job, logs, resumed_step = state.job, state.paths.logs, state.progress.step
    with RunLog(logs, resumed_step) as log:
        tracker = None
        if job.spec.tracking.wandb is not None:
            run_id = f"{job.name}-{job.uid}"
            try:
                tracker = WandbTracker(
                    job.spec.tracking.wandb, job.name, run_id, state.settings, logs, node.environment
                )
            except TrackingError as error:
                log.say(f"warning: not reporting to Weights & Biases: {error}")
        every, steps_per_epoch = job.spec.training.log_every_steps, state.prepared.steps_per_epoch
        begun = describe_beginning(state)
        attempt = int(node.environment.get(names.ATTEMPT, "1"))
        exporter.metrics.describe_attempt(attempt, job.spec.checkpoint.every_steps)
        yield RankZeroReporter(log, exporter, tracker, begun, steps_per_epoch, every, node.leave_progress)


def _saved_until(begun: ProgressReport) -> float:
    """Return the Unix time since which steps would be lost: of the checkpoint that is gone on from, or now."""
    if begun.checkpoint is None:
        return time.time()
    return datetime.fromisoformat(begun.checkpoint.time).timestamp()


def describe_beginning(state: TrainingState) -> ProgressReport:
    """Return the progress of a training that is about to begin, or to go on."""
    step, prepared, found = state.progress.step, state.prepared, state.resumed_from
    return ProgressReport(
        step=step,
        total_steps=prepared.total_steps,
        epoch=min(step, prepared.total_steps - 1) // prepared.steps_per_epoch + 1,
        resumed_from_step=step,
        checkpoint=None if found.directory is None else describe(found.directory, state.paths.shared),
        damaged_checkpoints=found.damages,
    )
