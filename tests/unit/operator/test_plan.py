"""The plan: who mounts what, how many do what, and which claims cannot be used."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.api.job import FineTuneJob
from finetune_operator.errors import InvalidJob
from finetune_operator.names import RoleName
from finetune_operator.plan import ClaimAccessModes, Plan, make_plan
from tests.factories import SETTINGS, condition, make_job_plan, manifest

EXISTING_SHARED = {"shared": {"claimName": "models", "size": None, "storageClassName": None}}
DISK = {"network": {"size": "1Gi"}}
DISK_OF_MANY = {"network": {"size": "1Gi", "accessMode": "ReadWriteMany"}}
EXISTING_DISK = {"network": {"claimName": "logs"}}


# Name, nodes, first rank and volumes of a role.
Role = tuple[str, int, int, list[str]]


def roles_of(plan: Plan) -> list[Role]:
    roles = plan.roles
    return [(role.name.value, role.nodes, role.first_rank, [disk.volume for disk in role.mounts]) for role in roles]


NODE, LEADER, WORKER = RoleName.NODE.value, RoleName.LEADER.value, RoleName.WORKER.value
BOTH = ["shared", "network"]

ROLES: dict[str, tuple[int, dict[str, Any], ClaimAccessModes, list[Role]]] = {
    "one node without a network disk": (1, {}, {}, [(NODE, 1, 0, ["shared"])]),
    "one node with a network disk": (1, DISK, {}, [(NODE, 1, 0, BOTH)]),
    "many nodes without a network disk": (3, {}, {}, [(NODE, 3, 0, ["shared"])]),
    "many nodes with a disk that one node mounts": (3, DISK, {}, [(LEADER, 1, 0, BOTH), (WORKER, 2, 1, ["shared"])]),
    "many nodes with a disk that all mount": (3, DISK_OF_MANY, {}, [(NODE, 3, 0, BOTH)]),
    "an existing disk that all nodes mount": (
        2,
        EXISTING_DISK,
        {"logs": ["ReadWriteOnce", "ReadWriteMany"]},
        [(NODE, 2, 0, BOTH)],
    ),
    "an existing disk that one node mounts": (
        2,
        EXISTING_DISK,
        {"logs": ["ReadWriteOnce"]},
        [(LEADER, 1, 0, BOTH), (WORKER, 1, 1, ["shared"])],
    ),
    "an existing disk that was not seen yet": (
        2,
        EXISTING_DISK,
        {},
        [(LEADER, 1, 0, BOTH), (WORKER, 1, 1, ["shared"])],
    ),
    "a disk that was kept from an earlier job": (
        2,
        DISK,
        {"calls-network": ["ReadWriteMany"]},
        [(NODE, 2, 0, BOTH)],
    ),
}


@pytest.mark.parametrize(("nodes", "storage", "claims", "roles"), ROLES.values(), ids=ROLES.keys())
def test_roles_follow_from_nodes_and_claims(
    nodes: int, storage: dict[str, Any], claims: ClaimAccessModes, roles: list[Role]
) -> None:
    plan = make_job_plan({"compute": {"nodes": nodes}, "storage": storage}, claims=claims)
    assert roles_of(plan) == roles


REFUSED: dict[str, tuple[int, dict[str, Any], ClaimAccessModes, str]] = {
    "a shared filesystem that one of two nodes can mount": (
        2,
        EXISTING_SHARED,
        {"models": ["ReadWriteOnce"]},
        "spec.storage.shared.claimName: claim models has access modes ReadWriteOnce, but 2 nodes have to mount it at "
        "once; set compute.nodes to 1, or use a claim that is ReadWriteMany",
    ),
    "a shared filesystem that is only read": (
        1,
        EXISTING_SHARED,
        {"models": ["ReadOnlyMany"]},
        "spec.storage.shared.claimName: claim models has access modes ReadOnlyMany, so that nothing can be written to "
        "it; use a claim that is ReadWriteMany",
    ),
    "a network disk that is only read": (
        1,
        EXISTING_DISK,
        {"logs": ["ReadOnlyMany"]},
        "spec.storage.network.claimName: claim logs has access modes ReadOnlyMany, so that nothing can be written to "
        "it; use a claim that is ReadWriteMany",
    ),
    "a claim for one node, kept from an earlier job of the name": (
        2,
        {},
        {"calls-shared": ["ReadWriteOnce"]},
        "spec.storage.shared: claim calls-shared is there already, kept from an earlier job of this name, and has "
        "access modes ReadWriteOnce, but 2 nodes have to mount it at once; set compute.nodes to 1, or use a claim that "
        "is ReadWriteMany",
    ),
}


@pytest.mark.parametrize(("nodes", "storage", "claims", "problem"), REFUSED.values(), ids=REFUSED.keys())
def test_a_claim_that_cannot_be_used_is_refused_with_its_field(
    nodes: int, storage: dict[str, Any], claims: ClaimAccessModes, problem: str
) -> None:
    with pytest.raises(InvalidJob) as refusal:
        make_job_plan({"compute": {"nodes": nodes}, "storage": storage}, claims=claims)
    assert refusal.value.problems == (problem,)


def test_gpus_asked_for_as_a_resource_are_refused() -> None:
    with pytest.raises(InvalidJob) as refusal:
        make_job_plan({"compute": {"resources": {"limits": {"nvidia.com/gpu": 8}}}})
    assert refusal.value.problems == (
        "spec.compute.resources.limits: leave nvidia.com/gpu out; it follows from gpusPerNode",
    )


def test_claims_that_were_not_seen_yet_are_named() -> None:
    storage = EXISTING_SHARED | EXISTING_DISK
    assert make_job_plan({"storage": storage}).missing_claims == ("models", "logs")
    assert make_job_plan({"storage": storage}, claims={"models": ["ReadWriteOnce"]}).missing_claims == ("logs",)
    assert make_job_plan({"storage": DISK}).missing_claims == ()


def test_one_node_asks_for_no_filesystem_that_many_nodes_can_mount() -> None:
    for nodes, access_mode in ((1, "ReadWriteOnce"), (2, "ReadWriteMany")):
        (disk,) = make_job_plan({"compute": {"nodes": nodes}}).disks
        assert disk.new is not None
        assert disk.new.access_mode.value == access_mode


def test_claims_are_kept_unless_the_job_says_otherwise() -> None:
    for reclaim, deleted in ((None, False), ("Retain", False), ("Delete", True)):
        storage = DISK if reclaim is None else DISK | {"reclaim": reclaim}
        disks = make_job_plan({"storage": storage}).disks
        assert [disk.new.deleted_with_job for disk in disks if disk.new is not None] == [deleted, deleted]


def test_the_job_goes_before_the_settings() -> None:
    ours, theirs = make_job_plan(), make_job_plan({"compute": {"image": "mine:1", "imagePullPolicy": "Always"}})
    assert (ours.image, ours.image_pull_policy) == ("registry.example/finetune-trainer:1.2.3", "IfNotPresent")
    assert (theirs.image, theirs.image_pull_policy) == ("mine:1", "Always")


PROCESSES: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "GPUs by default, one a node": ({}, (1, 1, 1)),
    "eight GPUs on each of two nodes": ({"nodes": 2, "gpusPerNode": 8}, (2, 8, 8)),
    "processors take no GPU": ({"nodes": 2, "device": "cpu", "processesPerNode": 4}, (2, 4, 0)),
}


@pytest.mark.parametrize(("compute", "counts"), PROCESSES.values(), ids=PROCESSES.keys())
def test_processes_and_gpus_are_counted(compute: dict[str, Any], counts: tuple[int, int, int]) -> None:
    plan = make_job_plan({"compute": compute})
    assert (plan.num_nodes, plan.num_processes_per_node, plan.gpus_per_node) == counts


def test_the_plan_tells_why() -> None:
    plan = make_job_plan({"compute": {"nodes": 3, "gpusPerNode": 8}, "storage": DISK})
    assert plan.reasons == (
        "Claim calls-network goes to one node only: a leader with rank 0 mounts it, the workers (2) do not.",
        "compute.image is not set: the operator's trainer image registry.example/finetune-trainer:1.2.3 is used.",
        "Claim calls-shared: 2Ti, ReadWriteMany, shared-fs; it is kept when the job is deleted.",
        "Claim calls-network: 1Gi, ReadWriteOnce, the cluster's default storage class; it is kept when the job is "
        "deleted.",
    )


def test_the_same_job_and_cluster_always_give_the_same_plan() -> None:
    assert make_job_plan({"storage": DISK}) == make_job_plan({"storage": DISK})
    other = replace(SETTINGS, hub_endpoint="http://hub.example")
    assert make_job_plan({"storage": DISK}, settings=other) != make_job_plan({"storage": DISK})


IN_A_QUEUE = {"kueue.x-k8s.io/queue-name": "team-a"}
ADMITTED_AS_A_WHOLE: dict[str, dict[str, Any]] = {
    "one node": {"storage": DISK},
    "no network disk": {"compute": {"nodes": 2}},
    "a network disk for many nodes": {"compute": {"nodes": 2}, "storage": DISK_OF_MANY},
    "a PyTorchJob": {"compute": {"nodes": 2, "backend": "PyTorchJob"}, "storage": DISK},
    "a claim that was not seen yet": {"compute": {"nodes": 2}, "storage": EXISTING_DISK},
}


@pytest.mark.parametrize("spec", ADMITTED_AS_A_WHOLE.values(), ids=ADMITTED_AS_A_WHOLE.keys())
def test_a_gang_that_a_queue_admits_as_a_whole_is_accepted(spec: dict[str, Any]) -> None:
    assert make_job_plan(spec, labels=IN_A_QUEUE).queue_labels == IN_A_QUEUE


def test_a_gang_that_a_queue_would_admit_in_parts_is_refused_with_what_to_do() -> None:
    two_jobs = {"compute": {"nodes": 2}, "storage": DISK}
    with pytest.raises(InvalidJob, match=r"queue team-a admits each Job by itself.*compute\.backend to PyTorchJob"):
        make_job_plan(two_jobs, labels=IN_A_QUEUE)
    assert len(make_job_plan(two_jobs).roles) == 2


def test_a_job_that_was_accepted_before_it_was_put_into_a_queue_goes_on() -> None:
    body = manifest({"compute": {"nodes": 2}, "storage": DISK}, labels=IN_A_QUEUE)
    job = FineTuneJob.parse(body | {"status": {"conditions": [condition("Accepted")]}})
    assert make_plan(job, SETTINGS, {}).queue_labels == IN_A_QUEUE
