"""Plays the kubelet where there are no nodes: writes the status of pods that the Job controller really made."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from finetune_trainer.contract import series
from finetune_trainer.contract.progress import ProgressReport
from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import JobView, Kubectl, Manifest
from tests.unit.operator.kubernetes_objects import (
    PREPARED_MESSAGE,
    TRAINED_MESSAGE,
    ended,
    failure_message,
    running,
    unschedulable,
)

PREPARE = "finetune.dev/stage=prepare"
TRAIN = "finetune.dev/stage=train"

# Rank 0's exporter, as far as these tests go, listens on this machine, at an address for each worker of xdist.
POD_IP = f"127.0.0.{1 + int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw'))}"


class Kubelet:
    """The pods of one job."""

    def __init__(self, kubectl: Kubectl, job: str) -> None:
        self._kubectl = kubectl
        self._job = job

    def pods(self, stage: str, count: int) -> list[Manifest]:
        """Return the pods of a stage as soon as they are there; not those that a deleted job of the name left."""
        found: list[Manifest] = []
        selector = f"finetune.dev/job={self._job},{stage}"

        def all_there() -> bool:
            owners = {self._kubectl.get("finetunejob", self._job)["metadata"]["uid"]}
            jobs = _owned_by(owners, self._kubectl.items("jobs", selector))
            pods = _owned_by({job["metadata"]["uid"] for job in jobs}, self._kubectl.items("pods", selector))
            found[:] = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
            return len(found) == count

        self._kubectl.wait_until(f"{count} pods of {self._job} in {stage}", all_there, timeout_seconds=20)
        return sorted(found, key=lambda pod: pod["metadata"]["name"])

    def set_status(self, pod: Manifest, status: Mapping[str, Any]) -> None:
        patch = json.dumps({"status": status})
        name = pod["metadata"]["name"]
        self._kubectl.run("patch", "pod", name, "--subresource=status", "--type=merge", "--patch", patch)

    def prepare(self) -> None:
        (pod,) = self.pods(PREPARE, 1)
        self.set_status(pod, running(POD_IP))
        self.set_status(pod, ended(PREPARED_MESSAGE))

    def start_training(self, num_pods: int) -> list[Manifest]:
        pods = self.pods(TRAIN, num_pods)
        for pod in pods:
            self.set_status(pod, running(POD_IP))
        return pods

    def finish_training(self, pods: list[Manifest]) -> None:
        for pod in pods:
            self.set_status(pod, ended(TRAINED_MESSAGE))


def bring_to(kubectl: Kubectl, name: str, stage: str, **overrides: Any) -> None:
    """Apply a job and play Kubernetes until it is in a stage."""
    kubectl.apply(tiny_job(name, **overrides))
    kubelet = Kubelet(kubectl, name)
    if stage == "preparing":
        kubelet.pods(PREPARE, 1)
        return
    kubelet.prepare()
    kubectl.wait_for_job(name, lambda job: job.phase == "Starting", timeout_seconds=20)
    pods = kubelet.pods(TRAIN, 2)
    if stage == "waiting":
        kubelet.set_status(pods[0], unschedulable())
        kubectl.wait_for_job(name, lambda job: job.status["reason"] == "Unschedulable", timeout_seconds=20)
    if stage in ("running", "suspended", "failed", "succeeded"):
        kubelet.start_training(2)
        kubectl.wait_for_job(name, lambda job: job.phase == "Running", timeout_seconds=20)
    if stage == "suspended":
        kubectl.run("patch", "finetunejob", name, "--type=merge", "--patch", '{"spec": {"suspend": true}}')
        kubectl.wait_for_job(name, lambda job: job.phase == "Suspended", timeout_seconds=20)
    if stage == "succeeded":
        kubelet.finish_training(pods)
        kubectl.wait_for_job(name, lambda job: job.phase == "Succeeded", timeout_seconds=20)
    if stage == "failed":
        kubelet.set_status(pods[1], ended(failure_message("Diverged", "loss is NaN at step 3"), exit_code=1))
        wait_until_failed(kubectl, name)


def wait_until_failed(kubectl: Kubectl, name: str) -> JobView:
    kubectl.wait_until(f"{name} has failed", lambda: kubectl.job(name).phase == "Failed", timeout_seconds=20)
    return kubectl.job(name)


@contextmanager
def telling(report: ProgressReport) -> Iterator[None]:
    """Play rank 0's exporter, which tells how far it is."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == series.PROGRESS_PATH else 404)
            self.end_headers()
            self.wfile.write(report.model_dump_json(by_alias=True).encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer((POD_IP, series.METRICS_PORT), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _owned_by(uids: set[str], bodies: list[Manifest]) -> list[Manifest]:
    """Return the objects that one of the owners controls."""
    return [body for body in bodies if body["metadata"]["ownerReferences"][0]["uid"] in uids]
