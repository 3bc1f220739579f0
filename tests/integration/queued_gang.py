"""Plays the scheduler and the kubelets for a gang that a queue lets in, takes the place of, and lets in again."""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from tests.e2e.kubectl import Kubectl, Manifest
from tests.integration.kubelet import POD_IP, TRAIN, Kubelet
from tests.unit.operator.kubernetes_objects import ended, failure_message, running


@contextmanager
def namespace_with_node(kubectl: Kubectl) -> Iterator[Kubectl]:
    """A fresh namespace, and a node for its pods: those that are on none are deleted without a grace period."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    kubectl.run("create", "namespace", name)
    kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    yield kubectl.within(name)
    kubectl.run("delete", "node", name)


def train(kubectl: Kubectl, name: str, former: Sequence[str] = ()) -> list[Manifest]:
    """Play Kubernetes until the gang runs; `former` are pods of an earlier run that are still there."""
    kubelet = Kubelet(kubectl, name)
    there = kubelet.pods(TRAIN, 2 + len(former))
    pods = [pod for pod in there if pod["metadata"]["name"] not in former]
    for pod in pods:
        _bind(kubectl, pod)
        kubelet.set_status(pod, running(POD_IP))
    kubectl.wait_for_job(name, lambda job: job.phase == "Running", timeout_seconds=20)
    return pods


def end_when_told_to_leave(kubectl: Kubectl, name: str, pod: Manifest) -> None:
    """Let a pod go as soon as it is told to."""
    pod_name = pod["metadata"]["name"]
    kubectl.wait_until(
        f"{pod_name} was told to leave",
        lambda: "deletionTimestamp" in kubectl.get("pod", pod_name)["metadata"],
        timeout_seconds=20,
    )
    Kubelet(kubectl, name).set_status(pod, stopped())
    # The kubelet's last word on a pod that has ended.
    kubectl.run("delete", "pod", pod_name, "--force", "--grace-period=0", "--ignore-not-found")


def ended_now(message: Manifest, exit_code: int) -> Manifest:
    """Return the status of a pod that has just ended."""
    return ended(message, exit_code, finished_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


def stopped() -> Manifest:
    """Return the same of one that was told to stop."""
    return ended_now(failure_message("Terminated", "stopped by SIGTERM at step 3"), exit_code=143)


def _bind(kubectl: Kubectl, pod: Manifest) -> None:
    """Play the scheduler."""
    name = pod["metadata"]["name"]
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": kubectl.namespace},
    }
    path = f"/api/v1/namespaces/{kubectl.namespace}/pods/{name}/binding"
    kubectl.run("create", "--raw", path, "-f", "-", stdin=json.dumps(binding))
