"""Jobs in a queue, on a real API server with the real Job controller. The queue (Kueue) is played: it suspends Jobs."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl, Manifest
from tests.integration.kubelet import Kubelet
from tests.integration.operator_process import OperatorProcess
from tests.integration.queued_gang import end_when_told_to_leave, ended_now, namespace_with_node, stopped, train
from tests.unit.operator.kubernetes_objects import TRAINED_MESSAGE

pytestmark = pytest.mark.apiserver


@pytest.fixture
def namespace(installed: Kubectl) -> Iterator[Kubectl]:
    """A fresh namespace with a node."""
    with namespace_with_node(installed) as kubectl:
        yield kubectl


def _start(kubectl: Kubectl, name: str) -> list[Manifest]:
    """Apply a job that is in a queue, and play Kubernetes until it trains."""
    job = tiny_job(name, storage__network=None, evaluation={"enabled": False})
    job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    kubectl.apply(job)
    Kubelet(kubectl, name).prepare()
    return train(kubectl, name)


def _suspend(kubectl: Kubectl, job: str, suspend: bool) -> None:
    """Play the queue."""
    kubectl.run("patch", "job", job, "--type=merge", "--patch", json.dumps({"spec": {"suspend": suspend}}))


def test_a_gang_whose_place_a_queue_takes_away_waits_and_goes_on(operator: OperatorProcess, namespace: Kubectl) -> None:
    first, second = _start(namespace, "taken")
    labels = namespace.get("job", "taken-a1-node")["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "team-a"

    # A gang stops as a whole: the first pod ends before its Job has come to tell it so.
    Kubelet(namespace, "taken").set_status(first, stopped())
    _suspend(namespace, "taken-a1-node", True)
    waiting = namespace.wait_for_job("taken", lambda job: job.status["reason"] == "Queued", timeout_seconds=20)
    assert waiting.phase == "Pending"
    assert "Queue team-a has suspended Job taken-a1-node" in waiting.condition("Running")["message"]
    end_when_told_to_leave(namespace, "taken", second)
    assert namespace.get("job", "taken-a1-node")["spec"]["suspend"] is True

    _suspend(namespace, "taken-a1-node", False)
    pods = train(namespace, "taken", former=[first["metadata"]["name"]])
    for pod in pods:
        Kubelet(namespace, "taken").set_status(pod, ended_now(TRAINED_MESSAGE, exit_code=0))
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
