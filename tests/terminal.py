"""A program in a real pseudo-terminal, and its screen as a person would read it."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import pyte


class Terminal:
    """A terminal of so many lines and columns with one program in it."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], columns: int = 140, lines: int = 45
    ) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.raw = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = subprocess.Popen(
            # Where the tests run in the background, Ctrl-C is ignored, and whom they start inherits that.
            ["env", "--default-signal=INT", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def text(self) -> str:
        """What is on the screen now."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screen.display)

    def wait_for(self, seen: Callable[[str], bool], what: str, timeout_seconds: float) -> str:
        """Return the screen as soon as it looks as expected."""
        deadline = time.monotonic() + timeout_seconds
        while not seen(text := self.text()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_seconds:.0f} s: {what}\n{text}")
            time.sleep(0.2)
        return text

    def wait(self, timeout_seconds: float) -> int:
        """Wait for the end of the program and of what it wrote, and return its exit code."""
        code = self.process.wait(timeout=timeout_seconds)
        self._reader.join(timeout=10)
        return code

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=10)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return  # the last process that had the other end has ended
            if not data:
                return
            with self._lock:
                self.raw += data
                self._stream.feed(data)
