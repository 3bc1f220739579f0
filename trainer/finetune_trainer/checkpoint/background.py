"""Checkpoints that are written while the training goes on."""

import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from finetune_trainer.checkpoint.content import Progress, Tensors
from finetune_trainer.checkpoint.snapshot import Snapshot
from finetune_trainer.contract.progress import CheckpointReport
from finetune_trainer.errors import TrainerError


@dataclass(frozen=True)
class Written:
    """A checkpoint that is complete."""

    report: CheckpointReport
    write_seconds: float  # beside the training
    stalled_seconds: float  # for which the training stood still


class Checkpoints:
    """Takes none: what every process has but global rank 0."""

    def take(self, progress: Progress) -> None:
        """Take a checkpoint of what was trained so far."""

    def wait_before_change(self) -> None:
        """Call before adapter or optimizer change."""

    def tell(self) -> None:
        """Tell of a checkpoint that was completed meanwhile, or of its failure."""

    def wait(self) -> None:
        """Wait for the checkpoint under way, and tell of it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Leave nothing under way."""


class BackgroundCheckpoints(Checkpoints):
    """Writes copies of some tensors, one at a time, in a thread; whoever takes the next too early waits.

    Args:
        tensors: what is copied, see `Snapshot`.
        write: writes a copy of them, with the progress that they belong to.
        tell: is told of each checkpoint when it is complete, in the thread of the training.
        saved_step: step that the tensors were read from a checkpoint of, or 0: there is no need to take one of it.

    Every method but the first raises the TrainerError of a checkpoint that could not be written.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        write: Callable[[Tensors, Progress], CheckpointReport],
        tell: Callable[[Written], None],
        saved_step: int = 0,
    ) -> None:
        self._snapshot = Snapshot(tensors)
        self._write = write
        self._tell = tell
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: Future[tuple[CheckpointReport, float]] | None = None
        self._stalled_seconds = 0.0
        self._saved_step = saved_step

    def take(self, progress: Progress) -> None:
        """Take a checkpoint of what was trained since the last; waits for the former one to be complete."""
        if progress.step == self._saved_step:
            return
        started = time.monotonic()
        self.wait()
        self._snapshot.begin()
        self._saved_step = progress.step
        self._under_way = self._thread.submit(self._copy_and_write, progress)
        self._stalled_seconds = time.monotonic() - started

    def wait_before_change(self) -> None:
        """Wait until the copy of adapter and optimizer is made."""
        started = time.monotonic()
        self._snapshot.wait_before_change()
        self._stalled_seconds += time.monotonic() - started

    def tell(self) -> None:
        """Tell of a checkpoint that was completed meanwhile, or of its failure."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint under way, and tell of it."""
        if self._under_way is None:
            return
        under_way, self._under_way = self._under_way, None
        report, seconds = under_way.result()
        self._tell(Written(report, seconds, self._stalled_seconds))

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Wait for the checkpoint under way also after an error: it may be what the next attempt goes on from."""
        try:
            self.wait()
        except TrainerError as error:
            if kind is None:
                raise
            print(f"warning: the last checkpoint was not written: {error.message}", file=sys.stderr, flush=True)
        finally:
            self._thread.shutdown()

    def _copy_and_write(self, progress: Progress) -> tuple[CheckpointReport, float]:
        started = time.monotonic()
        return self._write(self._snapshot.finish(), progress), time.monotonic() - started
