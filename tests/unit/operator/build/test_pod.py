"""What is true of every pod of every job, whatever its spec says."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.build.prepare import build_prepare_job
from finetune_operator.settings import Settings
from tests.factories import SETTINGS, make_job_plan
from tests.unit.operator.build.views import container_of, environment_of, pod_of, train_jobs_of

DISK = {"network": {"size": "1Gi"}}
AFFINITY: dict[str, Any] = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {"matchExpressions": [{"key": "gpu.example/memory", "operator": "Gt", "values": ["80"]}]}
            ]
        }
    },
    "podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {
                "weight": 10,
                "podAffinityTerm": {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {"matchLabels": {"app": "inference"}},
                },
            }
        ]
    },
}
JOBS: dict[str, dict[str, Any]] = {
    "one GPU": {},
    "a gang with a network disk": {"compute": {"nodes": 4, "gpusPerNode": 8}, "storage": DISK},
    "processors": {"compute": {"nodes": 2, "device": "cpu"}},
    "a job with everything": {
        "compute": {
            "image": "mine:1",
            "imagePullSecrets": ["registry"],
            "nodeSelector": {"gpu": "h100"},
            "tolerations": [{"operator": "Exists"}],
            "priorityClassName": "high",
            "affinity": AFFINITY,
            "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
        },
        "secretName": "tokens",
    },
}


def pods_of(spec: dict[str, Any], settings: Settings = SETTINGS) -> list[dict[str, Any]]:
    """The pod specs of every Job that is made for a job."""
    plan = make_job_plan(spec, settings=settings)
    return [pod_of(job) for job in (build_prepare_job(plan), *train_jobs_of(plan, attempt=1))]


@pytest.mark.parametrize("spec", JOBS.values(), ids=JOBS.keys())
def test_every_pod_passes_the_restricted_pod_security_standard(spec: dict[str, Any]) -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, control by control
    for pod in pods_of(spec):
        security, container = pod["securityContext"], container_of(pod)["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] != 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["allowPrivilegeEscalation"] is False
        assert container["capabilities"] == {"drop": ["ALL"]}
        assert not {"hostNetwork", "hostPID", "hostIPC", "sysctls"} & set(pod)
        assert not {"privileged", "procMount", "seLinuxOptions"} & set(container)
        assert all("hostPort" not in port for port in container_of(pod).get("ports", []))
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim"}


@pytest.mark.parametrize("spec", JOBS.values(), ids=JOBS.keys())
def test_every_pod_writes_to_its_volumes_and_nowhere_else(spec: dict[str, Any]) -> None:
    for pod in pods_of(spec):
        container = container_of(pod)
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
        assert {"/tmp", "/dev/shm", "/mnt/shared"} <= set(mounts)
        assert environment_of(pod)["HOME"] == "/tmp"


@pytest.mark.parametrize("spec", JOBS.values(), ids=JOBS.keys())
def test_a_user_without_an_entry_in_passwd_has_a_name(spec: dict[str, Any]) -> None:
    for pod in pods_of(spec):
        assert environment_of(pod)["USER"] == "finetune-trainer"


@pytest.mark.parametrize("spec", JOBS.values(), ids=JOBS.keys())
def test_no_pod_can_talk_to_the_api_server(spec: dict[str, Any]) -> None:
    for pod in pods_of(spec):
        assert pod["automountServiceAccountToken"] is False
        assert "serviceAccountName" not in pod


@pytest.mark.parametrize("spec", JOBS.values(), ids=JOBS.keys())
def test_shared_memory_is_memory(spec: dict[str, Any]) -> None:
    for pod in pods_of(spec):
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "shared-memory")
        assert volume["emptyDir"] == {"medium": "Memory"}


def test_tokens_come_from_the_secret_and_either_may_be_missing() -> None:
    for pod in pods_of({"secretName": "tokens"}):
        for key in ("HF_TOKEN", "WANDB_API_KEY"):
            reference = {"name": "tokens", "key": key, "optional": True}
            assert environment_of(pod)[key] == {"secretKeyRef": reference}


def test_without_a_secret_there_is_no_token() -> None:
    for pod in pods_of({}):
        assert not {"HF_TOKEN", "WANDB_API_KEY"} & set(environment_of(pod))


def test_every_pod_of_a_job_is_placed_as_its_user_says() -> None:
    for pod in pods_of(JOBS["a job with everything"]):
        assert pod["nodeSelector"] == {"gpu": "h100"}
        assert pod["tolerations"][0] == {"operator": "Exists"}
        assert pod["priorityClassName"] == "high"
        assert pod["affinity"] == AFFINITY
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert environment_of(pod)["NCCL_DEBUG"] == "INFO"


def test_the_hub_is_the_administrators_unless_the_user_names_another() -> None:
    settings = replace(SETTINGS, hub_endpoint="http://mirror.example")
    own = {"compute": {"env": [{"name": "HF_ENDPOINT", "value": "http://mine.example"}]}}
    for spec, endpoint in (({}, "http://mirror.example"), (own, "http://mine.example")):
        for pod in pods_of(spec, settings):
            assert environment_of(pod)["HF_ENDPOINT"] == endpoint


def test_the_job_file_is_mounted_where_the_trainer_reads_it() -> None:
    for pod in pods_of({}):
        (mount,) = (mount for mount in container_of(pod)["volumeMounts"] if mount["name"] == "job")
        assert mount == {"name": "job", "mountPath": "/etc/finetune", "readOnly": True}
        assert container_of(pod)["args"][1] == "/etc/finetune/job.yaml"


def node_loss_tolerations(pod: dict[str, Any]) -> dict[str, Any]:
    return {
        toleration["key"]: toleration.get("tolerationSeconds")
        for toleration in pod["tolerations"]
        if toleration.get("key", "").startswith("node.kubernetes.io/")
    }


@pytest.mark.parametrize("spec", JOBS.values(), ids=JOBS.keys())
def test_every_pod_leaves_a_node_that_does_not_answer_after_a_minute(spec: dict[str, Any]) -> None:
    for pod in pods_of(spec):
        assert node_loss_tolerations(pod) == {
            "node.kubernetes.io/not-ready": 60,
            "node.kubernetes.io/unreachable": 60,
        }


def test_the_administrator_says_how_long_pods_stay_on_a_node_that_does_not_answer() -> None:
    for pod in pods_of({}, replace(SETTINGS, unreachable_node_seconds=7)):
        assert set(node_loss_tolerations(pod).values()) == {7}


def test_a_user_who_tolerates_lost_nodes_by_name_decides_himself() -> None:
    own = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    for pod in pods_of({"compute": {"tolerations": [own]}}):
        assert node_loss_tolerations(pod) == {
            "node.kubernetes.io/unreachable": None,
            "node.kubernetes.io/not-ready": 60,
        }


def test_a_pod_gets_the_grace_period_that_the_run_policy_says() -> None:
    for spec, seconds in (({}, 300), ({"runPolicy": {"terminationGracePeriodSeconds": 45}}, 45)):
        for pod in pods_of(spec):
            assert pod["terminationGracePeriodSeconds"] == seconds


def test_rdma_adds_the_device_and_one_capability_to_training_pods_and_nothing_else() -> None:
    compute = {"nodes": 2, "gpusPerNode": 8}
    prepare, training = pods_of({"compute": compute | {"rdma": True}}, replace(SETTINGS, rdma_resource_name="rdma/ib"))
    plain_prepare, plain = pods_of({"compute": compute})
    assert prepare == plain_prepare
    container, plain_container = training["containers"][0], plain["containers"][0]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "8", "rdma/ib": "1"}}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    security = {**container["securityContext"], "capabilities": {"drop": ["ALL"]}}
    resources = plain_container["resources"]
    assert training | {"containers": [container | {"resources": resources, "securityContext": security}]} == plain
