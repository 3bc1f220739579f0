"""The watch that the tests of faults rest on, with a real API server."""

import json
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.faults.gangs import JobName
from tests.e2e.faults.history import Forgotten, History, PodName
from tests.e2e.faults.stream import Stream
from tests.e2e.faults.watch import TRAINING_PODS, Watch
from tests.e2e.kubectl import Kubectl, Manifest
from tests.integration.control_plane import ControlPlane

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


def training_pod(attempt: int, suffix: str = "0-x7k2p") -> dict[str, Any]:
    labels = {
        "finetune.dev/job": "calls",
        "finetune.dev/attempt": str(attempt),
        "finetune.dev/stage": "train",
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"calls-a{attempt}-node-{suffix}", "labels": labels},
        "spec": {"containers": [{"name": "trainer", "image": "none"}]},
    }


def remove(kubectl: Kubectl, pod: dict[str, Any]) -> None:
    kubectl.run("delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0")


class HeldBack(Kubectl):
    """kubectl whose lists wait until they may."""

    may_list = threading.Event()

    def run(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 60) -> str:
        self.may_list.wait(120)
        return super().run(*arguments, stdin=stdin, timeout_seconds=timeout_seconds)


def test_an_attempt_that_came_and_went_before_the_watch_was_back_is_told_of(
    kubectl: Kubectl, plane: ControlPlane
) -> None:
    watch, slow = Watch(History(plane.etcd_url)), HeldBack(kubectl.program, kubectl.kubeconfig)
    job = JobName("default", "calls")
    gaps: list[tuple[str, str]] = []

    def see_gap(after: str, until: str) -> None:
        watch.see_gap(after, until)
        gaps.append((after, until))

    slow.may_list.set()
    with Stream(slow, TRAINING_PODS, watch.gangs.see_all, watch.gangs.see, see_gap):
        kubectl.apply(training_pod(1))
        running = '{"status": {"phase": "Running"}}'
        kubectl.run("patch", "pod", "calls-a1-node-0-x7k2p", "--subresource=status", "--type=merge", "-p", running)
        wait_until(lambda: watch.gangs.attempts(job) == {1})
        slow.may_list.clear()
        # What a new API server has not seen being written it has forgotten, and pods were last written before this.
        kubectl.apply(config_map("meanwhile"))
        plane.stop_api_server()
        plane.start_api_server()
        kubectl.apply(training_pod(2))
        remove(kubectl, training_pod(2))
        slow.may_list.set()
        wait_until(lambda: len(gaps) == 1)
    assert watch.gangs.overlaps(job) == [
        "pod calls-a2-node-0-x7k2p came and went while nobody could watch, as those of attempt 1 ran or went"
    ]


def revision(kubectl: Kubectl) -> int:
    return int(kubectl.get("configmap", "mark")["metadata"]["resourceVersion"])


def mark(kubectl: Kubectl, text: str) -> int:
    """Write something, and return its revision."""
    kubectl.apply(config_map("mark") | {"data": {"text": text}})
    return revision(kubectl)


def test_etcd_tells_which_pods_came_and_went_between_two_revisions_and_no_other(
    kubectl: Kubectl, plane: ControlPlane
) -> None:
    early, passing, late = (training_pod(number, "0-history") for number in (4, 5, 6))
    kubectl.apply(early)
    after = mark(kubectl, "after")
    remove(kubectl, early)
    kubectl.apply(passing)
    remove(kubectl, passing)
    kubectl.apply(late)
    until = mark(kubectl, "until")
    remove(kubectl, late)
    history = History(plane.etcd_url)
    assert history.came_and_went(after, until) == [PodName("default", "calls-a5-node-0-history")]
    assert history.came_and_went(until, until) == []


def test_what_etcd_has_forgotten_is_not_taken_for_nothing(kubectl: Kubectl, plane: ControlPlane) -> None:
    after = mark(kubectl, "before")
    until = mark(kubectl, "after")
    compact(plane.etcd_url, until)
    with pytest.raises(Forgotten, match=f"compacted at {until}"):
        History(plane.etcd_url).came_and_went(after - 1, until)


def compact(etcd_url: str, at: int) -> None:
    """Have etcd forget what was before a revision."""
    body = json.dumps({"revision": at}).encode()
    with urllib.request.urlopen(f"{etcd_url}/v3/kv/compaction", body, timeout=10) as answer:
        assert answer.status == 200
