"""Jobs in a queue, on a real API server with the real Job controller. The queue (Kueue) is played: it suspends Jobs."""

import json
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import pytest

from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl, Manifest
from tests.integration.kubelet import POD_IP, TRAIN, Kubelet
from tests.integration.operator_process import OperatorProcess
from tests.unit.operator.kubernetes_objects import TRAINED_MESSAGE, ended, failure_message, running

pytestmark = pytest.mark.apiserver


def _ended_now(message: Manifest, exit_code: int) -> Manifest:
    """The status of a pod that has just ended."""
    return ended(message, exit_code, finished_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


def _stopped() -> Manifest:
    """The same of one that was told to stop."""
    return _ended_now(failure_message("Terminated", "stopped by SIGTERM at step 3"), exit_code=143)


@pytest.fixture
def namespace(installed: Kubectl) -> Iterator[Kubectl]:
    """A fresh namespace, and a node for its pods: those that are on none are deleted without a grace period."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    installed.run("create", "namespace", name)
    installed.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    yield installed.within(name)
    installed.run("delete", "node", name)


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


def _train(kubectl: Kubectl, name: str, former: Sequence[str] = ()) -> list[Manifest]:
    """Play Kubernetes until the gang runs; `former` are pods of an earlier run that are still there."""
    kubelet = Kubelet(kubectl, name)
    there = kubelet.pods(TRAIN, 2 + len(former))
    pods = [pod for pod in there if pod["metadata"]["name"] not in former]
    for pod in pods:
        _bind(kubectl, pod)
        kubelet.set_status(pod, running(POD_IP))
    kubectl.wait_for_job(name, lambda job: job.phase == "Running", timeout_seconds=20)
    return pods


def _start(kubectl: Kubectl, name: str) -> list[Manifest]:
    """Apply a job that is in a queue, and play Kubernetes until it trains."""
    job = tiny_job(name, storage__network=None, evaluation={"enabled": False})
    job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    kubectl.apply(job)
    Kubelet(kubectl, name).prepare()
    return _train(kubectl, name)


def _suspend(kubectl: Kubectl, job: str, suspend: bool) -> None:
    """Play the queue."""
    kubectl.run("patch", "job", job, "--type=merge", "--patch", json.dumps({"spec": {"suspend": suspend}}))


def _end_when_told_to_leave(kubectl: Kubectl, name: str, pod: Manifest) -> None:
    pod_name = pod["metadata"]["name"]
    kubectl.wait_until(
        f"{pod_name} was told to leave",
        lambda: "deletionTimestamp" in kubectl.get("pod", pod_name)["metadata"],
        timeout_seconds=20,
    )
    Kubelet(kubectl, name).set_status(pod, _stopped())
    # The kubelet's last word on a pod that has ended.
    kubectl.run("delete", "pod", pod_name, "--force", "--grace-period=0", "--ignore-not-found")


def test_a_gang_whose_place_a_queue_takes_away_waits_and_goes_on(operator: OperatorProcess, namespace: Kubectl) -> None:
    first, second = _start(namespace, "taken")
    labels = namespace.get("job", "taken-a1-node")["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "team-a"

    # A gang stops as a whole: the first pod ends before its Job has come to tell it so.
    Kubelet(namespace, "taken").set_status(first, _stopped())
    _suspend(namespace, "taken-a1-node", True)
    waiting = namespace.wait_for_job("taken", lambda job: job.status["reason"] == "Queued", timeout_seconds=20)
    assert waiting.phase == "Pending"
    assert "Queue team-a has suspended Job taken-a1-node" in waiting.condition("Running")["message"]
    _end_when_told_to_leave(namespace, "taken", second)
    assert namespace.get("job", "taken-a1-node")["spec"]["suspend"] is True

    _suspend(namespace, "taken-a1-node", False)
    pods = _train(namespace, "taken", former=[first["metadata"]["name"]])
    for pod in pods:
        Kubelet(namespace, "taken").set_status(pod, _ended_now(TRAINED_MESSAGE, exit_code=0))
    done = namespace.wait_for_job("taken", lambda job: job.phase == "Succeeded", timeout_seconds=20)
    assert [attempt["reason"] for attempt in done.status["attempts"]] == ["Succeeded"]
    assert done.status["restarts"] == 0


def test_a_job_of_two_jobs_is_not_let_into_a_queue(operator: OperatorProcess, namespace: Kubectl) -> None:
    job = tiny_job("parts")
    job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    namespace.apply(job)
    namespace.wait_until(
        "it is refused", lambda: namespace.job("parts").status.get("reason") == "InvalidSpec", timeout_seconds=20
    )
    assert "compute.backend to PyTorchJob" in namespace.job("parts").condition("Accepted")["message"]
