"""What is there of a gang that the training-operator runs: its PyTorchJob alone does not tell."""

from datetime import datetime, timedelta
from typing import Any

from finetune_operator.build.pytorch_job import build_pytorch_job
from finetune_operator.observe import JobSeen, JobState, observe, questions
from finetune_operator.store import ObjectKey
from tests.factories import UID, make_job_plan
from tests.unit.operator import kubernetes_objects as objects

Body = dict[str, Any]

NOW = datetime.fromisoformat(objects.CREATED) + timedelta(minutes=20)
GANG_UID = "uid-of-the-gang"
MASTER, WORKER = "calls-a1-master-0", "calls-a1-worker-0"


def gang(*conditions: str, **pods: Body) -> list[Body]:
    """A PyTorchJob of two nodes with these conditions, and its pods with these statuses."""
    spec = {"compute": {"backend": "PyTorchJob", "nodes": 2}}
    job = build_pytorch_job(make_job_plan(spec), attempt=1)
    job["metadata"] |= {"uid": GANG_UID, "creationTimestamp": objects.CREATED}
    job["status"] = {"conditions": [{"type": kind, "status": "True", "message": f"{kind}."} for kind in conditions]}
    return [job, *(pod(f"calls-a1-{role}-0", status) for role, status in pods.items())]


def pod(name: str, status: Body) -> Body:
    body = objects.pod(name, owner_uid=GANG_UID, **status)
    body["metadata"]["labels"] |= {"finetune.dev/stage": "train", "finetune.dev/attempt": "1"}
    return body


def seen(*children: Body, warnings: list[Body] | None = None) -> JobSeen:
    said = {ObjectKey("PyTorchJob", "calls-a1"): warnings or []}
    (job,) = observe(UID, children, said, NOW).gangs[1]
    return job


def test_its_pods_are_the_gang_and_rank_zero_comes_first() -> None:
    job = seen(*reversed(gang("Running", worker=objects.running(), master=objects.running())))
    assert [pod.name for pod in job.pods] == [MASTER, WORKER]
    assert (job.state, job.running, job.num_pods) == (JobState.ACTIVE, True, 2)


def test_a_gang_runs_when_its_workers_run_too() -> None:
    waiting = objects.waiting("PodInitializing")
    assert not seen(*gang("Running", master=objects.running(), worker=waiting)).running


def test_one_that_calls_itself_succeeded_while_a_worker_is_in_its_init_container_is_not_done() -> None:
    children = gang("Succeeded", master=objects.ended(), worker=objects.waiting("PodInitializing"))
    assert seen(*children).state is JobState.ACTIVE


def test_one_whose_worker_was_taken_away_before_it_had_done_its_work_has_failed() -> None:
    job = seen(*gang("Succeeded", master=objects.ended()))
    assert job.state is JobState.FAILED
    assert job.own_trouble is not None
    assert job.own_trouble.reason == "JobFailed"
    assert "PyTorchJob calls-a1 calls itself succeeded" in job.own_trouble.message


def test_it_is_done_when_every_pod_has_ended_well() -> None:
    children = gang("Succeeded", master=objects.ended(), worker=objects.ended())
    assert seen(*children).state is JobState.SUCCEEDED


def test_it_is_done_when_its_master_has_reported_an_adapter_and_the_worker_was_taken_away() -> None:
    job = seen(*gang("Succeeded", master=objects.ended(objects.TRAINED_MESSAGE)))
    assert (job.state, job.pods_lag_behind) == (JobState.SUCCEEDED, False)


def test_it_is_done_when_its_worker_was_taken_away_and_its_success_is_not_seen_yet() -> None:
    job = seen(*gang("Running", master=objects.ended(objects.TRAINED_MESSAGE)))
    assert job.state is JobState.SUCCEEDED


def test_one_that_failed_says_so_whatever_it_said_afterwards() -> None:
    job = seen(*gang("Failed", "Running", master=objects.running(), worker=objects.running()))
    assert job.state is JobState.FAILED
    assert job.own_trouble is not None
    assert "calls-a1 failed" in job.own_trouble.message


def test_a_pod_that_the_cluster_refuses_is_told_even_when_the_other_one_runs() -> None:
    children = gang("Running", master=objects.running())
    assert questions(UID, children, NOW) == (ObjectKey("PyTorchJob", "calls-a1"),)
    words = 'Error creating: pods "calls-a1-worker-0" is forbidden: violates PodSecurity "restricted:latest"'
    job = seen(*children, warnings=[objects.warning("FailedCreatePod", words)])
    assert job.waits is not None
    assert job.waits.reason == "PodsRefused"
    assert 'violates PodSecurity "restricted:latest"' in job.waits.message


def test_nobody_is_asked_about_a_gang_that_is_complete() -> None:
    children = gang("Running", master=objects.running(), worker=objects.running())
    assert questions(UID, children, NOW) == ()


def test_what_kueue_holds_back_is_seen_as_held_back() -> None:
    (job,) = gang()
    job["spec"]["runPolicy"]["suspend"] = True
    assert seen(job).suspended
