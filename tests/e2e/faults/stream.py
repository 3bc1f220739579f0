"""Follows objects of the cluster as they change, over outages of the API server."""

import json
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.e2e.kubectl import Kubectl, Manifest, Refused

RECONNECT_SECONDS = 0.5


class Stream:
    """A list and then a watch, in a thread of its own.

    A watch that is cut goes on behind the last event that it told, so that nothing is missed. Where the API server has
    forgotten that place, as it may have after it was away, everything is listed anew, and the gap between the two
    places is told.

    Args:
        kubectl: reaches the API server.
        path: what is watched, with its query.
        see_all: is told every object that is there, when the watch begins and whenever it may have missed something.
        see: is told the type and the object of every event.
        see_gap: is told, after everything was listed anew, behind which version and up to which one nobody watched.
    """

    def __init__(
        self,
        kubectl: Kubectl,
        path: str,
        see_all: Callable[[list[Manifest]], None],
        see: Callable[[str, Manifest], None],
        see_gap: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self._kubectl = kubectl
        self._path = path
        self._see_all = see_all
        self._see = see
        self._see_gap = see_gap
        self._version = ""  # of the last event
        self._has_its_place = False  # to go on from; without one everything has to be listed
        self._stopped = threading.Event()
        self._watch: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._follow, name=f"watch of {path}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stopped.set()
        self.cut()
        self._thread.join()

    def cut(self) -> None:
        """Cut the watch as a network does; it goes on by itself."""
        if self._watch is not None:
            self._watch.kill()

    def _follow(self) -> None:
        while not self._stopped.is_set():
            try:
                if not self._has_its_place:
                    self._list()
                self._follow_events()
            except (Refused, subprocess.TimeoutExpired):  # the API server is away
                pass
            self._stopped.wait(RECONNECT_SECONDS)

    def _list(self) -> None:
        listing = json.loads(self._kubectl.run("get", "--raw", self._path, timeout_seconds=20))
        before, self._version = self._version, listing["metadata"]["resourceVersion"]
        self._has_its_place = True
        self._see_all(listing["items"])
        if before:
            self._see_gap(before, self._version)

    def _follow_events(self) -> None:
        separator = "&" if "?" in self._path else "?"
        query = f"watch=true&allowWatchBookmarks=true&resourceVersion={self._version}"
        command = [
            *(str(self._kubectl.program), "--kubeconfig", str(self._kubectl.kubeconfig)),
            *("get", "--raw", f"{self._path}{separator}{query}"),
        ]
        self._watch = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
        )
        if self._stopped.is_set():
            self.cut()
        assert self._watch.stdout is not None
        was_told = False
        with self._watch:
            for line in self._watch.stdout:
                was_told = True
                self._see_event(line)
        if self._watch.returncode > 0 and not was_told:  # it was refused, not cut
            self._has_its_place = False

    def _see_event(self, line: str) -> None:
        try:
            event: Manifest = json.loads(line)
        except ValueError:  # half a line, which is what a watch that is cut ends with
            return
        if event["type"] == "ERROR":
            self._has_its_place = False
            return
        self._version = event["object"]["metadata"]["resourceVersion"]
        if event["type"] != "BOOKMARK":
            self._see(event["type"], event["object"])
