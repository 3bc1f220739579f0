"""kubectl as a person types it, and the waiting that a test needs."""

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]


class Refused(Exception):
    """kubectl ended with an error; the text is what a person would have read."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl bound to a cluster and a namespace."""

    program: Path
    kubeconfig: Path
    namespace: str = "default"

    def within(self, namespace: str) -> "Kubectl":
        return Kubectl(self.program, self.kubeconfig, namespace)

    def run(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 60) -> str:
        command = [str(self.program), "--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace, *arguments]
        finished = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=timeout_seconds, check=False
        )
        if finished.returncode != 0:
            raise Refused(finished.stderr or finished.stdout)
        return finished.stdout

    def apply(self, *manifests: Manifest) -> str:
        return self.run("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def get(self, kind: str, name: str) -> Manifest:
        return json.loads(self.run("get", kind, name, "--output", "json"))

    def items(self, kind: str, selector: str = "") -> list[Manifest]:
        return json.loads(self.run("get", kind, "--selector", selector, "--output", "json"))["items"]

    def job(self, name: str) -> "JobView":
        return JobView(self.get("finetunejob", name))

    def events(self, job: str) -> list[str]:
        """Reason and message of every Event on a FineTuneJob, oldest first."""
        events = json.loads(
            self.run("get", "events", "--field-selector", f"involvedObject.name={job}", "--output", "json")
        )["items"]
        own = [event for event in events if event["involvedObject"]["kind"] == "FineTuneJob"]
        own.sort(key=lambda event: event.get("eventTime") or event["lastTimestamp"])
        return [f"{event['reason']}: {event['message']}" for event in own]

    def wait_for_job(self, name: str, until: Callable[["JobView"], bool], timeout_seconds: float = 360) -> "JobView":
        """Wait until a FineTuneJob looks as expected; on time-out the failure tells all that a person would look at."""
        deadline = time.monotonic() + timeout_seconds
        for pause_seconds in _pauses():
            job = self.job(name)
            if until(job):
                return job
            if time.monotonic() > deadline or job.phase in ("Succeeded", "Failed"):
                break
            time.sleep(pause_seconds)
        raise AssertionError(f"FineTuneJob {name} did not get there:\n{self.story(name)}")

    def wait_until(self, what: str, condition: Callable[[], bool], timeout_seconds: float = 60) -> None:
        deadline = time.monotonic() + timeout_seconds
        for pause_seconds in _pauses():
            if condition():
                return
            if time.monotonic() > deadline:
                break
            time.sleep(pause_seconds)
        raise AssertionError(f"not within {timeout_seconds:.0f} s: {what}")

    def story(self, name: str) -> str:
        parts = [
            self.run("get", "finetunejob", name, "--output", "yaml"),
            self.run("get", "pods,jobs,pvc", "--output", "wide"),
            "\n".join(self.events(name)),
        ]
        for pod in self.items("pods"):
            try:
                logs = self.run("logs", pod["metadata"]["name"], "--tail", "30")
            except Refused as refused:
                logs = str(refused)
            parts.append(f"--- logs of {pod['metadata']['name']}\n{logs}")
        return "\n".join(parts)


def _pauses() -> Iterator[float]:
    """How long to wait between two looks: most things are there at once, and what is not may take minutes."""
    yield from (0.1, 0.1, 0.2, 0.3)
    while True:
        yield 0.5


@dataclass(frozen=True)
class JobView:
    """A FineTuneJob as the API server shows it."""

    body: Manifest

    @property
    def status(self) -> Manifest:
        return self.body.get("status", {})

    @property
    def phase(self) -> str:
        return self.status.get("phase", "")

    @property
    def step(self) -> int:
        return self.status.get("progress", {}).get("step", 0)

    def condition(self, kind: str) -> Manifest:
        for condition in self.status.get("conditions", []):
            if condition["type"] == kind:
                return condition
        return {"type": kind, "status": "", "reason": "", "message": ""}


@contextmanager
def fresh_namespace(kubectl: Kubectl) -> Iterator[Kubectl]:
    """A namespace that admits only pods of the `restricted` Pod Security Standard, deleted at the end."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }
    )
    try:
        yield kubectl.within(name)
    finally:
        kubectl.run("delete", "namespace", name, "--wait=false")
