"""Follows objects of the cluster as they change, over outages of the API server."""

import json
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.e2e.kubectl import Kubectl, Manifest

RECONNECT_SECONDS = 0.5


class Stream:
    """A watch in a thread of its own, which begins anew whenever it is cut.

    Args:
        kubectl: reaches the API server.
        path: what is watched, with its query.
        begin: is told that the watch begins: every object that is there is about to be told again.
        see: is told the type and the object of every event.
    """

    def __init__(
        self, kubectl: Kubectl, path: str, begin: Callable[[], None], see: Callable[[str, Manifest], None]
    ) -> None:
        separator = "&" if "?" in path else "?"
        self._command = [
            *(str(kubectl.program), "--kubeconfig", str(kubectl.kubeconfig)),
            *("get", "--raw", f"{path}{separator}watch=true"),
        ]
        self._begin = begin
        self._see = see
        self._stopped = threading.Event()
        self._watch: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._follow, name=f"watch of {path}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stopped.set()
        if self._watch is not None:
            self._watch.kill()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stopped.is_set():
            self._watch = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
            )
            assert self._watch.stdout is not None
            with self._watch:
                self._begin()
                for line in self._watch.stdout:
                    if (event := _read(line)) is not None:
                        self._see(event["type"], event["object"])
            self._stopped.wait(RECONNECT_SECONDS)


def _read(line: str) -> Manifest | None:
    """Return the event of a line; None for half a line, which is what a watch that is cut ends with."""
    try:
        event: Manifest = json.loads(line)
    except ValueError:
        return None
    return event if event["type"] in ("ADDED", "MODIFIED", "DELETED") else None
