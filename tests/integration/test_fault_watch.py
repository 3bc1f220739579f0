"""The watch that the tests of faults rest on, with a real API server."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.faults.stream import Stream
from tests.e2e.kubectl import Kubectl, Manifest

pytestmark = pytest.mark.apiserver

PATH = "/api/v1/namespaces/default/configmaps?labelSelector=watched%3Dyes"


class Seen:
    """What a stream has told."""

    def __init__(self) -> None:
        self.lists: list[set[str]] = []
        self.events: list[tuple[str, str]] = []

    def see_all(self, objects: list[Manifest]) -> None:
        self.lists.append({body["metadata"]["name"] for body in objects})

    def see(self, event_type: str, body: Manifest) -> None:
        self.events.append((event_type, body["metadata"]["name"]))


def config_map(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"watched": "yes"}}}


def wait_until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not found():
        assert time.monotonic() < deadline, "not told within 30 s"
        time.sleep(0.05)


def test_a_watch_that_was_cut_misses_nothing(kubectl: Kubectl) -> None:
    seen = Seen()
    kubectl.apply(config_map("first"))
    with Stream(kubectl, PATH, seen.see_all, seen.see) as stream:
        kubectl.apply(config_map("second"))
        wait_until(lambda: ("ADDED", "second") in seen.events)
        stream.cut()
        kubectl.run("delete", "configmap", "first")
        wait_until(lambda: ("DELETED", "first") in seen.events)
    assert len(seen.lists) == 1
