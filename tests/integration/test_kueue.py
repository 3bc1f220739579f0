"""Kueue itself, which lets one gang run, takes its place for a more important one, and lets it go on."""

from collections.abc import Iterator

import pytest

from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl
from tests.integration.control_plane import ControlPlane, running_control_plane
from tests.integration.kubelet import Kubelet
from tests.integration.kueue_process import API_SERVER_ARGUMENTS, running_kueue
from tests.integration.operator_process import OperatorProcess
from tests.integration.queued_gang import end_when_told_to_leave, ended_now, namespace_with_node, train
from tests.unit.operator.kubernetes_objects import TRAINED_MESSAGE

pytestmark = [pytest.mark.kueue, pytest.mark.timeout(3600)]

API = "kueue.x-k8s.io/v1beta2"
QUEUE = "team-a"
VALUES = {"important": 1000, "less-important": 10}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    directory = tmp_path_factory.mktemp("plane")
    with running_control_plane(directory, api_server_arguments=API_SERVER_ARGUMENTS) as control_plane:
        yield control_plane


@pytest.fixture(scope="module")
def queue(plane: ControlPlane, installed: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kueue with one queue that has room for one gang of two pods."""
    with running_kueue(plane, installed, tmp_path_factory.mktemp("kueue")):
        quotas = {"cpu": "8", "memory": "64Gi", "ephemeral-storage": "64Gi", "pods": "2"}
        resources = [{"name": name, "nominalQuota": quota} for name, quota in quotas.items()]
        group = {"coveredResources": list(quotas), "flavors": [{"name": "any-node", "resources": resources}]}
        installed.apply(
            {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": "any-node"}},
            {
                "apiVersion": API,
                "kind": "ClusterQueue",
                "metadata": {"name": QUEUE},
                "spec": {
                    "namespaceSelector": {},
                    "preemption": {"withinClusterQueue": "LowerPriority"},
                    "resourceGroups": [group],
                },
            },
            *(
                {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value}
                for name, value in VALUES.items()
            ),
        )
        yield


@pytest.fixture
def namespace(queue: None, installed: Kubectl) -> Iterator[Kubectl]:
    """A fresh namespace with a node, whose jobs may be put into the queue."""
    with namespace_with_node(installed) as kubectl:
        kubectl.apply(
            {
                "apiVersion": API,
                "kind": "LocalQueue",
                "metadata": {"name": QUEUE, "namespace": kubectl.namespace},
                "spec": {"clusterQueue": QUEUE},
            }
        )
        yield kubectl


def _apply(kubectl: Kubectl, name: str, importance: str) -> None:
    job = tiny_job(name, storage__network=None)
    labels = {"kueue.x-k8s.io/queue-name": QUEUE, "kueue.x-k8s.io/priority-class": importance}
    job["metadata"]["labels"] = labels
    kubectl.apply(job)
    Kubelet(kubectl, name).prepare()


def test_a_gang_gives_its_place_to_a_more_important_one_and_goes_on_after_it(
    operator: OperatorProcess, namespace: Kubectl
) -> None:
    _apply(namespace, "patient", "less-important")
    former = train(namespace, "patient")

    _apply(namespace, "urgent", "important")
    waiting = namespace.wait_for_job("patient", lambda job: job.status["reason"] == "Queued", timeout_seconds=60)
    assert waiting.phase == "Pending"
    assert f"Queue {QUEUE} has suspended Job patient-a1-node" in waiting.condition("Running")["message"]
    assert _why_evicted(namespace, "patient-a1-node") == "Preempted"
    for pod in former:
        end_when_told_to_leave(namespace, "patient", pod)
    for pod in train(namespace, "urgent"):
        Kubelet(namespace, "urgent").set_status(pod, ended_now(TRAINED_MESSAGE, exit_code=0))
    namespace.wait_for_job("urgent", lambda job: job.phase == "Succeeded", timeout_seconds=60)

    for pod in train(namespace, "patient"):
        Kubelet(namespace, "patient").set_status(pod, ended_now(TRAINED_MESSAGE, exit_code=0))
    done = namespace.wait_for_job("patient", lambda job: job.phase == "Succeeded", timeout_seconds=60)
    assert [attempt["reason"] for attempt in done.status["attempts"]] == ["Succeeded"]
    assert done.status["restarts"] == 0


def _why_evicted(kubectl: Kubectl, job: str) -> str:
    """Return what Kueue says of a Job that it took the place of."""
    (workload,) = (
        workload for workload in kubectl.items("workloads") if workload["metadata"]["ownerReferences"][0]["name"] == job
    )
    (reason,) = (
        condition["reason"] for condition in workload["status"]["conditions"] if condition["type"] == "Evicted"
    )
    return str(reason)
