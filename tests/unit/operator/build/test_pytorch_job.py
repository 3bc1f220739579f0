"""The PyTorchJob of a gang: what the training-operator needs of it, and what it must not do on its own."""

from typing import Any

import pytest

from tests.factories import make_job_plan
from tests.unit.operator.build.views import claims_of, container_of, environment_of, pod_of, train_jobs_of

DISK = {"network": {"size": "1Gi"}}


def of_shape(nodes: int, storage: dict[str, Any] | None = None, **compute: Any) -> dict[str, Any]:
    return {"compute": {"backend": "PyTorchJob", "nodes": nodes, **compute}, "storage": storage or {}}


GANGS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "one node is a master alone": (of_shape(1), {"Master": 1}),
    "two nodes are a master and a worker": (of_shape(2), {"Master": 1, "Worker": 1}),
    "a shared network disk changes nothing in that": (
        of_shape(4, {"network": {"size": "1Gi", "accessMode": "ReadWriteMany"}}),
        {"Master": 1, "Worker": 3},
    ),
}


def replica_specs(spec: dict[str, Any]) -> dict[str, Any]:
    (job,) = train_jobs_of(make_job_plan(spec), attempt=2)
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    specs = job["spec"]["pytorchReplicaSpecs"]
    assert isinstance(specs, dict)
    return specs


@pytest.mark.parametrize(("spec", "replicas"), GANGS.values(), ids=GANGS.keys())
def test_a_gang_is_one_pytorch_job(spec: dict[str, Any], replicas: dict[str, int]) -> None:
    assert {kind: of_kind["replicas"] for kind, of_kind in replica_specs(spec).items()} == replicas


def test_a_pod_that_ends_is_never_started_again_by_the_training_operator() -> None:
    (job,) = train_jobs_of(make_job_plan(of_shape(2)), attempt=1)
    assert job["spec"]["runPolicy"] == {"backoffLimit": 0, "cleanPodPolicy": "Running"}
    for replicas in job["spec"]["pytorchReplicaSpecs"].values():
        assert replicas["restartPolicy"] == "Never"
        # There it would be warned of in an Event for each pod.
        assert "restartPolicy" not in replicas["template"]["spec"]


def test_the_number_of_processes_of_a_node_is_a_string() -> None:
    (job,) = train_jobs_of(make_job_plan(of_shape(2, gpusPerNode=8)), attempt=1)
    assert job["spec"]["nprocPerNode"] == "8"


def test_the_training_operator_finds_its_container_and_the_rendezvous_port() -> None:
    for replicas in replica_specs(of_shape(3)).values():
        container = container_of(replicas["template"]["spec"])
        assert container["name"] == "pytorch"
        assert [(port["name"], port["containerPort"]) for port in container["ports"]] == [
            ("metrics", 9464),
            ("pytorchjob-port", 29500),
        ]


def test_a_pods_place_in_the_gang_is_left_to_the_training_operator() -> None:
    for replicas in replica_specs(of_shape(3)).values():
        variables = environment_of(replicas["template"]["spec"])
        assert variables["FINETUNE_ATTEMPT"] == "2"
        assert variables["FINETUNE_TERMINATION_GRACE_SECONDS"] == "300"
        assert [name for name in variables if name.startswith("PET_") or "RANK" in name] == []


def test_only_the_master_mounts_a_disk_that_goes_to_one_node() -> None:
    specs = replica_specs(of_shape(3, DISK))
    assert claims_of(specs["Master"]["template"]["spec"]) == ["calls-shared", "calls-network"]
    assert claims_of(specs["Worker"]["template"]["spec"]) == ["calls-shared"]


def test_the_pods_are_those_of_the_indexed_jobs_but_for_how_they_find_each_other() -> None:
    storage = {"storage": DISK}
    compute = {"nodes": 3, "gpusPerNode": 8, "nodeSelector": {"gpu": "h100"}}
    leader, worker = train_jobs_of(make_job_plan({"compute": compute, **storage}), attempt=2)
    specs = replica_specs({"compute": compute | {"backend": "PyTorchJob"}, **storage})
    for job, replicas in ((leader, specs["Master"]), (worker, specs["Worker"])):
        template = replicas["template"]
        assert template["metadata"] == job["spec"]["template"]["metadata"]
        assert comparable(template["spec"]) == comparable(pod_of(job))


def comparable(pod: dict[str, Any]) -> dict[str, Any]:
    """A pod's spec without what a back-end makes of it."""
    back_end = ("restartPolicy", "subdomain")
    container = {name: value for name, value in container_of(pod).items() if name not in ("name", "ports", "env")}
    variables = {
        name: value
        for name, value in environment_of(pod).items()
        if not name.startswith("PET_") and name != "FINETUNE_FIRST_NODE_RANK"
    }
    return {name: value for name, value in pod.items() if name not in back_end} | {
        "containers": [container | {"env": variables}]
    }
