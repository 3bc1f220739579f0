"""The Jobs that prepare and train: ranks, rendezvous, GPUs, and that Kubernetes never retries on its own."""

from typing import Any

import pytest

from finetune_operator.build.prepare import build_prepare_job
from finetune_operator.build.service import build_service
from tests.factories import make_job_plan
from tests.unit.operator.build.views import claims_of, container_of, environment_of, pod_of, train_jobs_of

DISK = {"network": {"size": "1Gi"}}
GANGS: dict[str, dict[str, Any]] = {
    "one node": {},
    "one Indexed Job": {"compute": {"nodes": 3, "gpusPerNode": 8}},
    "leader and workers": {"compute": {"nodes": 3, "gpusPerNode": 8}, "storage": DISK},
}
LONGEST_NAME = "a-finetuning-job-with-a-name-as-long-as-the-api-server-takes-it"


@pytest.mark.parametrize("spec", GANGS.values(), ids=GANGS.keys())
def test_the_ranks_of_a_gang_are_counted_from_zero_without_a_gap(spec: dict[str, Any]) -> None:
    jobs = train_jobs_of(make_job_plan(spec), attempt=1)
    ranks = [
        int(environment_of(pod_of(job))["FINETUNE_FIRST_NODE_RANK"]) + index
        for job in jobs
        for index in range(job["spec"]["completions"])
    ]
    num_nodes = spec.get("compute", {}).get("nodes", 1)
    assert ranks == list(range(num_nodes))
    assert all(environment_of(pod_of(job))["PET_NNODES"] == str(num_nodes) for job in jobs)


@pytest.mark.parametrize("name", ["calls", LONGEST_NAME])
@pytest.mark.parametrize("spec", GANGS.values(), ids=GANGS.keys())
def test_every_pod_meets_at_the_dns_name_of_rank_zero(spec: dict[str, Any], name: str) -> None:
    plan = make_job_plan(spec, name)
    service, jobs = build_service(plan, attempt=2), train_jobs_of(plan, attempt=2)
    rank_zero = f"{jobs[0]['metadata']['name']}-0"
    for job in jobs:
        variables = environment_of(pod_of(job))
        assert variables["PET_MASTER_ADDR"] == f"{rank_zero}.{service['metadata']['name']}"
        assert variables["PET_MASTER_PORT"] == "29500"
        assert pod_of(job)["subdomain"] == service["metadata"]["name"]


@pytest.mark.parametrize("spec", GANGS.values(), ids=GANGS.keys())
def test_the_service_finds_the_pods_of_its_attempt_and_no_others(spec: dict[str, Any]) -> None:
    plan = make_job_plan(spec)
    selector = build_service(plan, attempt=2)["spec"]["selector"].items()
    labels = {
        attempt: [job["spec"]["template"]["metadata"]["labels"].items() for job in train_jobs_of(plan, attempt)]
        for attempt in (1, 2)
    }
    assert all(selector <= of_pod for of_pod in labels[2])
    assert not any(selector <= of_pod for of_pod in labels[1])
    assert not selector <= build_prepare_job(plan)["spec"]["template"]["metadata"]["labels"].items()


def test_pods_meet_before_they_are_ready() -> None:
    spec = build_service(make_job_plan({"compute": {"nodes": 2}}), attempt=1)["spec"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)


@pytest.mark.parametrize("spec", GANGS.values(), ids=GANGS.keys())
def test_kubernetes_never_tries_again_on_its_own(spec: dict[str, Any]) -> None:
    plan = make_job_plan(spec)
    for job in (build_prepare_job(plan), *train_jobs_of(plan, attempt=1)):
        assert job["spec"]["backoffLimit"] == 0
        assert pod_of(job)["restartPolicy"] == "Never"


def test_a_gang_is_one_pod_a_node_all_at_once() -> None:
    (job,) = train_jobs_of(make_job_plan(GANGS["one Indexed Job"]), attempt=1)
    assert job["spec"]["completionMode"] == "Indexed"
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (3, 3)
    assert job["spec"]["podReplacementPolicy"] == "Failed"
    (spread,) = pod_of(job)["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["maxSkew"]) == ("kubernetes.io/hostname", 1)
    pod_labels = job["spec"]["template"]["metadata"]["labels"]
    assert spread["labelSelector"]["matchLabels"].items() <= pod_labels.items()


def test_only_the_leader_mounts_the_network_disk() -> None:
    leader, worker = train_jobs_of(make_job_plan(GANGS["leader and workers"]), attempt=1)
    assert leader["metadata"]["labels"]["finetune.dev/role"] == "leader"
    assert [claims_of(pod_of(job)) for job in (leader, worker)] == [["calls-shared", "calls-network"], ["calls-shared"]]
    assert container_of(pod_of(leader))["args"][2:] == ["--shared", "/mnt/shared", "--network", "/mnt/network"]
    assert container_of(pod_of(worker))["args"][2:] == ["--shared", "/mnt/shared"]


RESOURCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "GPUs alone": ({"gpusPerNode": 8}, {"limits": {"nvidia.com/gpu": "8"}}),
    "GPUs beside what the user asks for": (
        {"gpusPerNode": 2, "resources": {"requests": {"cpu": 16}, "limits": {"memory": "1Ti"}}},
        {"requests": {"cpu": "16"}, "limits": {"memory": "1Ti", "nvidia.com/gpu": "2"}},
    ),
    "nothing on processors": ({"device": "cpu"}, {}),
}


@pytest.mark.parametrize(("compute", "resources"), RESOURCES.values(), ids=RESOURCES.keys())
def test_a_training_pod_asks_for_its_gpus_and_what_the_user_says(
    compute: dict[str, Any], resources: dict[str, Any]
) -> None:
    (job,) = train_jobs_of(make_job_plan({"compute": compute}), attempt=1)
    assert container_of(pod_of(job))["resources"] == resources


def test_preparing_holds_no_gpu_and_no_network_disk() -> None:
    pod = pod_of(build_prepare_job(make_job_plan(GANGS["leader and workers"])))
    assert claims_of(pod) == ["calls-shared"]
    assert container_of(pod)["resources"] == {"requests": {"cpu": "1", "memory": "4Gi"}}
    assert container_of(pod)["args"] == ["prepare", "/etc/finetune/job.yaml", "--shared", "/mnt/shared"]


def test_training_serves_metrics_on_a_named_port() -> None:
    (job,) = train_jobs_of(make_job_plan(), attempt=1)
    assert container_of(pod_of(job))["ports"] == [{"name": "metrics", "containerPort": 9464, "protocol": "TCP"}]


QUEUED = {"kueue.x-k8s.io/queue-name": "team-a", "kueue.x-k8s.io/priority-class": "low"}


@pytest.mark.parametrize("backend", ["Job", "PyTorchJob"])
def test_what_makes_the_gang_is_put_into_the_queue_of_the_job_and_its_pods_are_not(backend: str) -> None:
    spec = {"compute": {"nodes": 2, "backend": backend}}
    (workload,) = train_jobs_of(make_job_plan(spec, labels={**QUEUED, "team": "a"}), attempt=1)
    labels = workload["metadata"]["labels"]
    assert QUEUED.items() <= labels.items()
    assert "team" not in labels
    assert "kueue.x-k8s.io" not in str(workload["spec"])
    assert "suspend" not in str(workload["spec"])


def test_preparing_waits_in_no_queue_because_it_holds_no_gpu() -> None:
    prepare = build_prepare_job(make_job_plan(labels=QUEUED))
    assert not set(QUEUED) & set(prepare["metadata"]["labels"])


def test_a_queued_job_survives_that_its_pods_are_told_to_stop() -> None:
    (job,) = train_jobs_of(make_job_plan(labels=QUEUED), attempt=1)
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "Ignore",
        "onExitCodes": {"containerName": container_of(pod_of(job))["name"], "operator": "In", "values": [143]},
    }
    assert job["spec"]["backoffLimit"] == 0


def test_a_job_in_no_queue_fails_with_its_first_pod_whatever_the_reason() -> None:
    (job,) = train_jobs_of(make_job_plan(), attempt=1)
    assert "podFailurePolicy" not in job["spec"]
