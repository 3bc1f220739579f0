"""What people and clusters do to a job while it runs, and what the operator makes of it."""

import pytest

from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl

pytestmark = [pytest.mark.e2e, pytest.mark.beside]

LONG = {"training__epochs": 200, "training__maxStepsPerEpoch": 10}
TRAIN = "finetune.dev/stage=train"
TOKEN = "hf_this-token-must-not-be-seen-anywhere"


def _start(namespace: Kubectl, name: str, **overrides: object) -> None:
    namespace.apply(tiny_job(name, **LONG, **overrides))
    namespace.wait_for_job(name, lambda job: job.step >= 1)


def test_a_job_that_may_not_start_anew_fails_with_its_first_pod_and_frees_both_nodes(namespace: Kubectl) -> None:
    _start(namespace, "no-restarts", runPolicy={"maxRestarts": 0, "terminationGracePeriodSeconds": 20})
    namespace.run("delete", "pod", "--selector", f"{TRAIN},finetune.dev/role=worker", "--wait=false")
    namespace.wait_until("it has failed", lambda: namespace.job("no-restarts").phase == "Failed", timeout_seconds=180)
    job = namespace.job("no-restarts")
    # A pod that is gone before it was seen to end cannot tell why; then its Job does.
    assert job.condition("Failed")["reason"] in ("PodDeleted", "JobFailed")
    assert "spec.runPolicy.maxRestarts" in job.condition("Failed")["message"]
    assert job.status["attempts"][0]["ended"]
    namespace.wait_until(
        "no training pod runs",
        lambda: all(pod["status"]["phase"] in ("Failed", "Succeeded") for pod in namespace.items("pods", TRAIN)),
        timeout_seconds=60,
    )


def test_a_config_and_a_service_that_somebody_deletes_are_made_again_and_the_training_goes_on(
    namespace: Kubectl,
) -> None:
    _start(namespace, "healed")
    step = namespace.job("healed").step
    namespace.run("delete", "configmap", "healed-config")
    namespace.run("delete", "service", "healed-a1")
    namespace.wait_until(
        "both are there again",
        lambda: bool(
            namespace.items("configmaps", "finetune.dev/job=healed")
            and namespace.items("services", "finetune.dev/job=healed")
        ),
    )
    namespace.wait_for_job("healed", lambda job: job.step > step)


def test_the_operator_counts_jobs_by_phase_and_the_requests_that_it_makes(
    operator: Kubectl, namespace: Kubectl
) -> None:
    _start(namespace, "counted")
    (pod,) = operator.items("pods", "app.kubernetes.io/name=finetune-operator")
    path = f"/api/v1/namespaces/{operator.namespace}/pods/{pod['metadata']['name']}:8080/proxy/metrics"
    metrics = operator.run("get", "--raw", path)
    assert 'finetune_operator_jobs{phase="Running"}' in metrics
    assert 'finetune_operator_api_requests_total{code="200",resource="finetunejobs/status",verb="patch"}' in metrics


def test_a_token_is_seen_by_the_containers_and_by_nobody_else(operator: Kubectl, namespace: Kubectl) -> None:
    namespace.run("create", "secret", "generic", "tokens", f"--from-literal=HF_TOKEN={TOKEN}")
    namespace.apply(tiny_job("secretive", secretName="tokens", compute__nodes=1, training__epochs=1))
    namespace.wait_for_job("secretive", lambda job: job.phase == "Succeeded")
    told = [
        namespace.run("get", "finetunejobs,configmaps,jobs,pods,events", "--output", "yaml"),
        namespace.run("logs", "job/secretive-prepare"),
        namespace.run("logs", "job/secretive-a1-node"),
        operator.run("logs", "deployment/finetune-operator"),
    ]
    assert not any(TOKEN in text for text in told)
    environment = namespace.get("job", "secretive-prepare")["spec"]["template"]["spec"]["containers"][0]["env"]
    (token,) = [variable for variable in environment if variable["name"] == "HF_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"]["name"] == "tokens"
