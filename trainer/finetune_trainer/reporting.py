"""What a run tells while it goes on, and to whom: people, Prometheus, Weights & Biases.

Global rank 0 speaks for all; every other process has a reporter that says nothing, so the recipe need not ask who it
is.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.contract.termination import TrainedReport
from finetune_trainer.metrics import StepRecord, TrainingMetrics
from finetune_trainer.runlog import RunLog, describe_step
from finetune_trainer.state import TrainingState
from finetune_trainer.tracking import TrackingError, WandbTracker


class Reporter:
    """Tells nobody: the reporter of every process but global rank 0."""

    def say(self, line: str) -> None:
        """Tell people something."""

    def record_step(self, record: StepRecord) -> None:
        """Tell that a step was done."""

    def record_checkpoint(self, step: int, directory: Path, seconds: float) -> None:
        """Tell that a checkpoint was written."""

    def finish(self, report: TrainedReport) -> None:
        """Tell how the run ended."""


class RankZeroReporter(Reporter):
    """Tells everybody.

    Args:
        log: the log files.
        metrics: the series of the exporter.
        tracker: Weights & Biases, where the job asks for it.
        resumed_step: step that the run goes on from, or 0.
        steps_total: steps of the whole run.
        log_every_steps: steps between two lines for people.
    """

    def __init__(
        self,
        log: RunLog,
        metrics: TrainingMetrics,
        tracker: WandbTracker | None,
        resumed_step: int,
        steps_total: int,
        log_every_steps: int,
    ) -> None:
        self._log = log
        self._metrics = metrics
        self._tracker = tracker
        self._resumed_step = resumed_step
        self._steps_total = steps_total
        self._log_every_steps = log_every_steps
        self._seconds = 0.0
        metrics.start(resumed_step, steps_total)

    def say(self, line: str) -> None:
        """Tell people something."""
        self._log.say(line)

    def record_step(self, record: StepRecord) -> None:
        """Tell that a step was done; people hear of the first, the last, and each so many."""
        self._metrics.record_step(record)
        self._log.record_step(record)
        self._track(lambda tracker: tracker.record_step(record))
        self._seconds += record.seconds
        is_due = record.step % self._log_every_steps == 0
        if is_due or record.step in (self._resumed_step + 1, self._steps_total):
            seconds_a_step = self._seconds / (record.step - self._resumed_step)
            self.say(describe_step(record, self._steps_total, seconds_a_step))

    def record_checkpoint(self, step: int, directory: Path, seconds: float) -> None:
        """Tell that a checkpoint was written."""
        self._metrics.record_checkpoint(step, seconds)
        self.say(f"checkpoint of step {step} written to {directory} in {seconds:.1f} s")

    def finish(self, report: TrainedReport) -> None:
        """Tell how the run ended."""
        self._track(lambda tracker: tracker.finish(report.model_dump()))
        self.say(
            f"trained {report.steps} steps: loss {report.first_loss:.4f} -> {report.final_loss:.4f}, "
            f"{report.tokens} tokens, {report.tokens_per_second:.0f} tokens/s; adapter in {report.adapter_path}"
        )

    def _track(self, tell: Callable[[WandbTracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            tell(self._tracker)
        except TrackingError as error:
            self._tracker = None
            self.say(f"warning: no longer reporting to Weights & Biases: {error}")


@contextmanager
def open_reporter(
    state: TrainingState, metrics: TrainingMetrics | None, environment: Mapping[str, str]
) -> Iterator[Reporter]:
    """On rank 0, open the log files, and the run on Weights & Biases where the job asks for one.

    Args:
        state: of the run, resumed already.
        metrics: of the exporter; only rank 0 has them.
        environment: of the process.

    Raises:
        TrainerError: STORAGE_FULL or STORAGE_NOT_WRITABLE.
    """
    if metrics is None:
        yield Reporter()
        return
    job, logs, resumed_step = state.job, state.paths.logs, state.progress.step
    with RunLog(logs, resumed_step) as log:
        tracker = None
        if job.spec.tracking.wandb is not None:
            run_id = f"{job.name}-{job.uid}"
            try:
                tracker = WandbTracker(job.spec.tracking.wandb, job.name, run_id, state.settings, logs, environment)
            except TrackingError as error:
                log.say(f"warning: not reporting to Weights & Biases: {error}")
        every = job.spec.training.log_every_steps
        yield RankZeroReporter(log, metrics, tracker, resumed_step, state.prepared.total_steps, every)
