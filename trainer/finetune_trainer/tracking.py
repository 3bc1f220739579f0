"""Weights & Biases, for jobs that ask for it. A run is never stopped by it: all that fails is a TrackingError."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune_trainer.contract.environment import WANDB_API_KEY
from finetune_trainer.contract.spec import Wandb, WandbMode
from finetune_trainer.metrics import StepRecord


class TrackingError(Exception):
    """The run cannot be reported; the message says why and what to do."""


class WandbTracker:
    """A run on Weights & Biases, or a directory for a later `wandb sync`.

    Args:
        settings: `tracking.wandb` of the job.
        name: the job's name.
        run_id: the same for every attempt, so that they are one run there.
        configuration: what the run was asked to do.
        directory: for the run's files; `wandb/` is made in it.
        environment: of the process; wandb itself reads the key from there.

    Raises:
        TrackingError: there is no key, or the server cannot be reached or refuses it.
    """

    def __init__(
        self,
        settings: Wandb,
        name: str,
        run_id: str,
        configuration: Mapping[str, Any],
        directory: Path,
        environment: Mapping[str, str],
    ) -> None:
        is_online = settings.mode is WandbMode.ONLINE
        if is_online and not environment.get(WANDB_API_KEY):
            raise TrackingError(
                f"{WANDB_API_KEY} is not set: put it into the Secret that spec.secretName names, or set "
                "tracking.wandb.mode: offline"
            )
        import wandb  # takes a second to import, so only when it is asked for

        self._stop_service = wandb.teardown
        with _as_tracking_error():
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                name=name,
                id=run_id,
                resume="allow" if is_online else None,
                config=dict(configuration),
                dir=directory,
                mode=settings.mode.value,
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
            )

    def record_step(self, record: StepRecord) -> None:
        """Report a step; wandb sends it in the background. Raises TrackingError."""
        values = {name: value for name, value in asdict(record).items() if name != "step"}
        with _as_tracking_error():
            self._run.log(values, step=record.step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Wait until everything has been sent or written. Raises TrackingError."""
        with _as_tracking_error():
            self._run.summary.update(dict(summary))
            self._run.finish()
            # NB: finish returns before the file of an offline run is written. wandb would wait for that when Python
            # exits, but a process started by multiprocessing ends without calling what is registered for the exit.
            self._stop_service()


@contextmanager
def _as_tracking_error() -> Iterator[None]:
    # wandb works in a process of its own, so anything may come: the kernel may have killed it, its disk may be full.
    try:
        yield
    except Exception as error:
        raise TrackingError(f"{type(error).__name__}: {error}") from error
