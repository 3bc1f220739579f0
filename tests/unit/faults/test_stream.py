"""A stream lists anew when the API server has forgotten its place or refuses it, and only then."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.faults import stream
from tests.e2e.faults.stream import Stream
from tests.e2e.kubectl import Kubectl

# In place of kubectl: answers the n-th list and the n-th watch with what stands in the files of these names.
PLAYED = """#!/bin/sh
for path; do :; done
case "$path" in *watch=true*) kind=watch ;; *) kind=list ;; esac
echo "$path" >> {directory}/asked
number=$(cat {directory}/$kind.count 2>/dev/null || echo 0)
echo $((number + 1)) > {directory}/$kind.count
if [ -f {directory}/$kind.$number ]; then exec cat {directory}/$kind.$number; fi
echo refused >&2
exit 1
"""


def pod(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


def event(event_type: str, body: dict[str, Any]) -> str:
    return json.dumps({"type": event_type, "object": body}) + "\n"


def listing(version: int, *pods: dict[str, Any]) -> str:
    return json.dumps({"metadata": {"resourceVersion": str(version)}, "items": pods})


@pytest.mark.parametrize("refusal", ["an event says that the place is forgotten", "the request is refused"])
def test_a_watch_goes_on_behind_what_it_told_last_and_lists_anew_where_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    monkeypatch.setattr(stream, "RECONNECT_SECONDS", 0.01)
    program = tmp_path / "kubectl"
    program.write_text(PLAYED.format(directory=tmp_path))
    program.chmod(0o755)
    (tmp_path / "list.0").write_text(listing(10, pod("a", 4)))
    (tmp_path / "watch.0").write_text(
        event("MODIFIED", pod("a", 11)) + event("BOOKMARK", pod("", 15)) + '{"type": "ADD'
    )
    (tmp_path / "watch.1").write_text(event("DELETED", pod("a", 16)))
    if refusal.startswith("an event"):
        (tmp_path / "watch.2").write_text(event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"}))
    (tmp_path / "list.1").write_text(listing(30, pod("b", 29)))
    (tmp_path / "watch.3").write_text(event("MODIFIED", pod("b", 31)))
    told: list[tuple[str, str]] = []

    def see_all(pods: list[dict[str, Any]]) -> None:
        told.append(("all", ",".join(body["metadata"]["name"] for body in pods)))

    def see(event_type: str, body: dict[str, Any]) -> None:
        told.append((event_type, body["metadata"]["name"]))

    expected = [("all", "a"), ("MODIFIED", "a"), ("DELETED", "a"), ("all", "b"), ("MODIFIED", "b")]
    gaps: list[tuple[str, str]] = []
    kubectl = Kubectl(program, tmp_path / "kubeconfig")
    with Stream(kubectl, "/api/v1/pods", see_all, see, lambda after, until: gaps.append((after, until))):
        deadline = time.monotonic() + 20
        while len(told) < len(expected) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert told == expected
    assert gaps == [("16", "30")]
    asked = (tmp_path / "asked").read_text().splitlines()[:6]
    query = "/api/v1/pods?watch=true&allowWatchBookmarks=true&resourceVersion="
    assert asked == ["/api/v1/pods", f"{query}10", f"{query}15", f"{query}16", "/api/v1/pods", f"{query}30"]
