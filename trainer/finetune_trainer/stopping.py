"""A stop that comes for sure, whatever the libraries do with the signal.

SIGTERM raises `Stopped` in the main thread, so that whatever is under way is cleaned up. That alone is not enough: the
main thread may sit in C++ code (a process waiting for its peers), where Python runs no signal handler, and the elastic
agent's own handler raises an Exception that its callers may swallow. So a thread that reads the signal's number from a
pipe (https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd) gives the main thread a grace, then ends the
process.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 10.0


class Stopped(BaseException):
    """A signal asked to stop. Not an Exception: libraries try imports and downloads again whatever Exception comes."""


def stop_on_sigterm(tell: Callable[[str], None], grace_seconds: float = GRACE_SECONDS) -> None:
    """Raise `Stopped` on SIGTERM, and end the process when that has not ended it after a grace.

    Args:
        tell: leaves the last word, given the signal's name; called only when the grace is over.
        grace_seconds: time for the main thread to end by itself.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGTERM, _raise)
    threading.Thread(target=_watch, args=(reader, tell, grace_seconds), name="stop", daemon=True).start()


def _raise(signal_number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(signal.Signals(signal_number).name)


def _watch(reader: int, tell: Callable[[str], None], grace_seconds: float) -> None:
    while os.read(reader, 1) != bytes([signal.SIGTERM]):
        pass  # another signal that Python handles
    # Ends with the process when the main thread does, as a daemon thread.
    threading.Event().wait(grace_seconds)
    for process in multiprocessing.active_children():
        process.kill()
    tell(signal.SIGTERM.name)
    os._exit(1)
