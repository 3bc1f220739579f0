"""PyTorchJobs against a real API server with the definition of the training-operator v1.9.4, which the test plays.

The tests tell one story, in order: at first the cluster does not know PyTorchJobs.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.training_operator import module_directory
from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl, Manifest
from tests.integration.control_plane import ControlPlane
from tests.integration.kubelet import POD_IP, Kubelet
from tests.integration.operator_process import OperatorProcess, running_operator
from tests.unit.operator.kubernetes_objects import TRAINED_MESSAGE, ended, running

pytestmark = pytest.mark.apiserver

DEFINITION = Path("manifests", "base", "crds", "kubeflow.org_pytorchjobs.yaml")


def test_a_job_whose_back_end_is_not_installed_waits_says_how_to_install_it_and_can_be_changed(
    operator: OperatorProcess, installed: Kubectl
) -> None:
    installed.apply(_job("early"))
    job = installed.wait_for_job("early", lambda job: job.condition("Accepted")["reason"] == "BackendMissing")
    assert (job.phase, job.condition("Accepted")["status"]) == ("Pending", "Unknown")
    assert "kubectl apply --server-side -k" in job.condition("Accepted")["message"]
    assert installed.items("jobs,persistentvolumeclaims") == []
    installed.apply(_job("undecided"))
    installed.wait_for_job("undecided", lambda job: job.condition("Accepted")["reason"] == "BackendMissing")
    installed.apply(_job("undecided", backend="Job"))
    installed.wait_for_job("undecided", lambda job: job.condition("Accepted")["status"] == "True")


def test_it_starts_by_itself_when_the_back_end_is_installed(operator: OperatorProcess, installed: Kubectl) -> None:
    definition = module_directory() / DEFINITION
    installed.run("apply", "--server-side", "--filename", str(definition), timeout_seconds=60)
    installed.wait_for_job("early", lambda job: job.condition("Accepted")["status"] == "True", timeout_seconds=20)
    Kubelet(installed, "early").prepare()
    job = _pytorch_job(installed, "early")
    assert job["metadata"]["name"] == "early-a1"
    assert {kind: spec["replicas"] for kind, spec in job["spec"]["pytorchReplicaSpecs"].items()} == {
        "Master": 1,
        "Worker": 1,
    }
    assert job["spec"]["runPolicy"] == {"backoffLimit": 0, "cleanPodPolicy": "Running", "suspend": False}


def test_the_api_server_has_dropped_no_field_of_what_was_applied(installed: Kubectl) -> None:
    for replicas in _pytorch_job(installed, "early")["spec"]["pytorchReplicaSpecs"].values():
        (container,) = replicas["template"]["spec"]["containers"]
        assert container["name"] == "pytorch"
        assert {port["name"] for port in container["ports"]} == {"metrics", "pytorchjob-port"}
        assert replicas["template"]["metadata"]["labels"]["finetune.dev/attempt"] == "1"
        assert replicas["restartPolicy"] == "Never"


def test_a_success_of_the_master_alone_is_none(operator: OperatorProcess, installed: Kubectl) -> None:
    master, worker = _make_pods(installed, "early")
    kubelet = Kubelet(installed, "early")
    for pod in (master, worker):
        kubelet.set_status(pod, running(POD_IP))
    installed.wait_for_job("early", lambda job: job.phase == "Running")
    kubelet.set_status(master, ended())
    _say(installed, "early-a1", "Succeeded")
    written = operator.num_writes()
    installed.run("annotate", "pytorchjob", "early-a1", "seen=yes")
    assert installed.job("early").phase == "Running"
    assert operator.num_writes() == written
    kubelet.set_status(worker, ended())
    installed.wait_for_job("early", lambda job: job.phase == "Succeeded")


def test_a_success_of_the_master_that_left_an_adapter_is_one_whatever_became_of_its_worker(
    operator: OperatorProcess, installed: Kubectl
) -> None:
    installed.apply(_job("adapter"))
    kubelet = Kubelet(installed, "adapter")
    kubelet.prepare()
    master, worker = _make_pods(installed, "adapter")
    for pod in (master, worker):
        kubelet.set_status(pod, running(POD_IP))
    installed.wait_for_job("adapter", lambda job: job.phase == "Running")
    kubelet.set_status(master, ended(TRAINED_MESSAGE))
    installed.run("delete", "pod", worker["metadata"]["name"], "--grace-period=0", "--force")
    _say(installed, "adapter-a1", "Succeeded")
    job = installed.wait_for_job("adapter", lambda job: job.phase == "Succeeded")
    assert job.status["result"]["steps"] == TRAINED_MESSAGE["trained"]["steps"]


def test_what_happens_to_a_pytorch_job_is_seen_although_it_was_installed_later(
    operator: OperatorProcess, installed: Kubectl
) -> None:
    installed.apply(_job("deleted"))
    Kubelet(installed, "deleted").prepare()
    first = _pytorch_job(installed, "deleted")
    for pod in _make_pods(installed, "deleted"):
        Kubelet(installed, "deleted").set_status(pod, running(POD_IP))
    installed.wait_for_job("deleted", lambda job: job.phase == "Running")
    installed.run("delete", "pytorchjob", first["metadata"]["name"], "--wait=false")
    job = installed.wait_for_job("deleted", lambda job: len(job.status["attempts"]) > 0 and job.phase != "Running")
    assert job.status["attempts"][0]["reason"] == "TrainJobDeleted"
    assert "PyTorchJob deleted-a1 was deleted" in job.status["attempts"][0]["message"]


def test_an_operator_that_starts_anew_lists_the_pytorch_jobs_before_it_is_ready(
    plane: ControlPlane, installed: Kubectl, tmp_path: Path
) -> None:
    with running_operator(plane.operator_kubeconfig, tmp_path) as again:
        again.wait_until_ready()
        listed = again.requests()
        assert listed["200", "pytorchjobs", "list"] >= 1
        assert "Unresolved resources" not in again.log.read_text()


def _job(name: str, backend: str = "PyTorchJob") -> Manifest:
    return tiny_job(name, compute__backend=backend)


def _pytorch_job(kubectl: Kubectl, job: str) -> Manifest:
    found: list[Manifest] = []

    def is_there() -> bool:
        found[:] = kubectl.items("pytorchjobs", f"finetune.dev/job={job}")
        return len(found) == 1

    kubectl.wait_until(f"the PyTorchJob of {job} is there", is_there, timeout_seconds=20)
    return found[0]


def _make_pods(kubectl: Kubectl, job: str) -> list[Manifest]:
    """Play the training-operator: a pod for each replica, the master first."""
    owner = _pytorch_job(kubectl, job)
    names = []
    for kind, replicas in owner["spec"]["pytorchReplicaSpecs"].items():
        for index in range(replicas["replicas"]):
            names.append(f"{owner['metadata']['name']}-{kind.lower()}-{index}")
            kubectl.apply(_pod(names[-1], owner, replicas["template"]))
    return [kubectl.get("pod", name) for name in sorted(names)]


def _pod(name: str, owner: Manifest, template: Manifest) -> Manifest:
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }
    metadata: dict[str, Any] = {"name": name, "ownerReferences": [reference], **template["metadata"]}
    spec = template["spec"] | {"restartPolicy": "Never"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _say(kubectl: Kubectl, name: str, condition: str) -> None:
    """Play the training-operator: it adds a condition to those that a PyTorchJob has."""
    conditions = [
        {"type": kind, "status": "True", "reason": f"PyTorchJob{kind}", "message": f"PyTorchJob {name} is {kind}."}
        for kind in ("Created", condition)
    ]
    patch = json.dumps({"status": {"conditions": conditions}})
    kubectl.run("patch", "pytorchjob", name, "--subresource=status", "--type=merge", "--patch", patch)
