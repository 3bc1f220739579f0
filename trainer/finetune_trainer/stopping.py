"""A stop that comes for sure, whatever the libraries do with the signal.

SIGTERM raises `Stopped` in the main thread, so that whatever is under way is cleaned up. That alone is not enough: the
main thread may sit in C++ code (a process waiting for its peers), where Python runs no signal handler. So a thread that
reads the signal's number from a pipe (https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd) gives the
main thread a grace, then ends the process. A second SIGTERM ends it at once.

While a node trains, nothing is raised: the agent asks its processes to stop, over a line to each of them, and waits for
them to leave a checkpoint. A line that is cut tells a process that its agent is gone.
"""

import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType

from finetune_trainer.contract.progress import ProgressReport
from finetune_trainer.contract.termination import STOPPED_EXIT_CODE

GRACE_SECONDS = 10.0

Tell = Callable[[str, ProgressReport | None], None]


class Stopped(BaseException):
    """A signal asked to stop. Not an Exception: libraries try imports and downloads again whatever Exception comes."""


@dataclass(frozen=True)
class _Answer:
    """What SIGTERM does now; `ask` is None where it raises `Stopped` in the main thread."""

    ask: Callable[[], bool] | None
    progress: Callable[[], ProgressReport | None]
    grace_seconds: float


_answer = _Answer(None, lambda: None, GRACE_SECONDS)


def stop_on_sigterm(tell: Tell, grace_seconds: float = GRACE_SECONDS) -> None:
    """Raise `Stopped` on SIGTERM, and end the process when that has not ended it after a grace.

    Args:
        tell: leaves the last word, given what happened and how far the training had come; called only by a process
            that is ended.
        grace_seconds: time for the main thread to end by itself.
    """
    global _answer
    _answer = _Answer(None, lambda: None, grace_seconds)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGTERM, _raise)
    threading.Thread(target=_watch, args=(reader, tell), name="stop", daemon=True).start()


@contextmanager
def ask_on_sigterm(
    ask: Callable[[], bool], progress: Callable[[], ProgressReport | None], grace_seconds: float
) -> Iterator[None]:
    """While this lasts, let SIGTERM ask others to stop instead of raising `Stopped` here.

    Args:
        ask: asks them, in another thread; returns False when nobody is there who could be asked, then this process ends
            at once.
        progress: returns how far the training has come, for the last word.
        grace_seconds: time until this process is ended.
    """
    global _answer
    before, _answer = _answer, _Answer(ask, progress, grace_seconds)
    try:
        yield
    finally:
        _answer = before


def _raise(signal_number: int, _: FrameType | None) -> None:
    if _answer.ask is None:
        raise Stopped(signal.Signals(signal_number).name)


def _watch(reader: int, tell: Tell) -> None:
    _wait_for_sigterm(reader, None)
    answer = _answer
    grace_seconds = answer.grace_seconds if answer.ask is None or answer.ask() else 0.0
    # Ends with the process when the main thread does, as a daemon thread.
    is_told_twice = _wait_for_sigterm(reader, grace_seconds)
    for process in multiprocessing.active_children():
        process.kill()
    why = "told twice to stop" if is_told_twice else f"stopped by {signal.SIGTERM.name}"
    tell(f"{why} before it was done", answer.progress())
    sys.stdout.flush()
    os._exit(STOPPED_EXIT_CODE)


def _wait_for_sigterm(reader: int, timeout_seconds: float | None) -> bool:
    """Return whether a SIGTERM came in time; None waits for ever."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while True:
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        if not select.select([reader], [], [], left)[0]:
            return False
        if os.read(reader, 1) == bytes([signal.SIGTERM]):
            return True  # any other is another signal that Python handles


class StopLines:
    """The agent's ends of the lines to its processes.

    Attributes:
        ends: those of the processes, by local rank; can be sent to a process that is spawned.
    """

    def __init__(self, num_processes: int) -> None:
        pairs = [multiprocessing.get_context("spawn").Pipe() for _ in range(num_processes)]
        self._own = [own for own, _ in pairs]
        self.ends = tuple(end for _, end in pairs)

    def ask(self) -> bool:
        """Ask all processes to stop; False when none is listening yet."""
        if not any(line.poll() for line in self._own):
            return False
        for line in self._own:
            try:
                line.send_bytes(b"stop")
            except OSError:  # it has ended
                continue
        return True


class StopRequest:
    """A process' end of the line: whether its agent has asked it to stop.

    Args:
        line: one of `StopLines.ends`; None where there is no agent.
        leave: ends the process, when it is asked to stop before its training has begun: there is nothing to save.
    """

    def __init__(self, line: Connection | None = None, leave: Callable[[], None] = lambda: None) -> None:
        self._line = line
        self._leave = leave
        self._is_made = threading.Event()
        self._is_training = threading.Event()
        if line is not None:
            line.send_bytes(b"listening")
            threading.Thread(target=self._listen, args=(line,), name="stop", daemon=True).start()

    def is_made(self) -> bool:
        """Return whether the process was asked to stop."""
        return self._is_made.is_set()

    def training_begins(self) -> None:
        """From now on the training looks for a request itself."""
        self._is_training.set()

    def _listen(self, line: Connection) -> None:
        try:
            line.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)  # the agent was killed; nobody would ever end this process
        self._is_made.set()
        if not self._is_training.is_set():
            self._leave()
