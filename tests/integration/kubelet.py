"""Plays the kubelet where there are no nodes: writes the status of pods that the Job controller really made."""

import json
from collections.abc import Mapping
from typing import Any

from tests.e2e.kubectl import Kubectl, Manifest
from tests.unit.operator.kubernetes_objects import PREPARED_MESSAGE, TRAINED_MESSAGE, ended, running

PREPARE = "finetune.dev/stage=prepare"
TRAIN = "finetune.dev/stage=train"

# Rank 0's exporter, as far as these tests go, listens on this machine.
POD_IP = "127.0.0.1"


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


def _owned_by(uids: set[str], bodies: list[Manifest]) -> list[Manifest]:
    """Return the objects that one of the owners controls."""
    return [body for body in bodies if body["metadata"]["ownerReferences"][0]["uid"] in uids]
