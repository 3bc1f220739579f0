"""Attempts, suspending and time limits against a real API server, Job controller and garbage collector."""

from collections.abc import Iterator

import pytest

from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl, Refused, fresh_namespace
from tests.integration.kubelet import TRAIN, Kubelet, bring_to, telling
from tests.integration.operator_process import OperatorProcess
from tests.unit.operator.kubernetes_objects import checkpoint, ended, report

pytestmark = pytest.mark.apiserver

OOM_KILLED = ended("", exit_code=137, reason="OOMKilled")


@pytest.fixture
def namespace(installed: Kubectl) -> Iterator[Kubectl]:
    with fresh_namespace(installed) as kubectl:
        yield kubectl


def _reasons(kubectl: Kubectl, name: str) -> list[str]:
    return [event.split(":")[0] for event in kubectl.events(name)]


def _training_jobs(kubectl: Kubectl) -> list[str]:
    return sorted(job["metadata"]["name"] for job in kubectl.items("jobs", TRAIN))


def _suspend(kubectl: Kubectl, name: str, suspended: str) -> None:
    kubectl.run("patch", "finetunejob", name, "--type=merge", "--patch", f'{{"spec": {{"suspend": {suspended}}}}}')


def test_a_killed_pod_is_followed_by_a_second_attempt_that_goes_on_from_the_checkpoint(
    operator: OperatorProcess, namespace: Kubectl
) -> None:
    with telling(report(step=12, checkpoint=checkpoint(10))):
        bring_to(namespace, "again", "running")
        namespace.wait_for_job("again", lambda job: job.step == 12, timeout_seconds=20)
    kubelet = Kubelet(namespace, "again")
    kubelet.set_status(kubelet.pods(TRAIN, 2)[1], OOM_KILLED)
    restarting = namespace.wait_for_job("again", lambda job: job.phase == "Restarting", timeout_seconds=20)
    assert "Attempt 2 starts from the checkpoint of step 10" in restarting.condition("Running")["message"]
    namespace.wait_until("the first gang is gone", lambda: _training_jobs(namespace) == [], timeout_seconds=20)
    assert namespace.items("services", TRAIN) == []
    namespace.wait_for_job("again", lambda job: job.phase == "Starting", timeout_seconds=30)
    assert _training_jobs(namespace) == ["again-a2-leader", "again-a2-worker"]
    with telling(report(step=10, resumed_from_step=10, checkpoint=checkpoint(10))):
        pods = kubelet.start_training(2)
        resumed = namespace.wait_for_job(
            "again", lambda job: job.status["attempts"][-1].get("resumedFromStep") == 10, timeout_seconds=20
        )
    assert resumed.status["restarts"] == 1
    assert [attempt.get("stepsLost") for attempt in resumed.status["attempts"]] == [2, None]
    kubelet.finish_training(pods)
    namespace.wait_for_job("again", lambda job: job.phase == "Succeeded", timeout_seconds=20)
    assert _reasons(namespace, "again") == [
        *("Accepted", "Prepared", "Running"),
        *("OOMKilled", "Starting", "Running", "CheckpointLoaded", "Succeeded"),
    ]


def test_a_suspended_job_has_no_pods_and_goes_on_as_an_attempt_that_is_no_restart(
    operator: OperatorProcess, namespace: Kubectl
) -> None:
    bring_to(namespace, "pauses", "running")
    _suspend(namespace, "pauses", "true")
    suspended = namespace.wait_for_job("pauses", lambda job: job.phase == "Suspended", timeout_seconds=20)
    assert suspended.condition("Suspended")["status"] == "True"
    assert (_training_jobs(namespace), namespace.items("pods", TRAIN)) == ([], [])
    _suspend(namespace, "pauses", "false")
    resumed = namespace.wait_for_job("pauses", lambda job: job.phase == "Starting", timeout_seconds=20)
    assert _training_jobs(namespace) == ["pauses-a2-leader", "pauses-a2-worker"]
    assert resumed.status["restarts"] == 0
    assert _reasons(namespace, "pauses")[-4:] == ["Suspending", "Suspended", "Resumed", "Starting"]


def test_the_policy_of_an_accepted_job_may_be_changed_and_the_rest_may_not(
    operator: OperatorProcess, namespace: Kubectl
) -> None:
    bring_to(namespace, "limited", "running")
    namespace.apply(tiny_job("limited", runPolicy={"maxRestarts": 1, "activeDeadlineSeconds": 86400}))
    with pytest.raises(Refused, match="cannot be changed after the job was accepted, except for suspend and runPolicy"):
        namespace.apply(tiny_job("limited", runPolicy={"maxRestarts": 1}, storage__reclaim="Delete"))
    namespace.apply(tiny_job("limited", runPolicy={"activeDeadlineSeconds": 1}))
    namespace.wait_until(
        "the job has failed", lambda: namespace.job("limited").status["reason"] == "DeadlineExceeded", 20
    )
    namespace.wait_until("its gang is gone", lambda: _training_jobs(namespace) == [], timeout_seconds=20)


def test_a_finished_job_is_deleted_when_its_time_is_over_and_its_claims_are_kept(
    operator: OperatorProcess, namespace: Kubectl
) -> None:
    bring_to(namespace, "brief", "succeeded")
    namespace.run(
        *("patch", "finetunejob", "brief", "--type=merge"),
        *("--patch", '{"spec": {"runPolicy": {"ttlSecondsAfterFinished": 1}}}'),
    )
    namespace.wait_until("the job is gone", lambda: namespace.items("finetunejobs") == [], timeout_seconds=20)
    for kind in ("jobs", "pods", "services", "configmaps"):
        namespace.wait_until(
            f"{kind} are gone", lambda kind=kind: namespace.items(kind, "finetune.dev/job=brief") == []
        )
    claims = {claim["metadata"]["name"] for claim in namespace.items("persistentvolumeclaims")}
    assert claims == {"brief-shared", "brief-network"}
