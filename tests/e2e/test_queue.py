"""A gang that a queue takes the place of and lets go on. The queue (Kueue) is played: it suspends the Job."""

from datetime import datetime

import pytest

from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import JobView, Kubectl, Manifest

pytestmark = [pytest.mark.e2e, pytest.mark.beside]

NUM_PROCESSES = 2
TOTAL_STEPS = 100
JOB = "queued-a1-node"


def _job() -> Manifest:
    job = tiny_job(
        "queued",
        training__epochs=20,
        training__maxStepsPerEpoch=5,
        checkpoint={"everySteps": 10},
        storage__network=None,
        evaluation={"enabled": False},
    )
    job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    return job


def _suspend(kubectl: Kubectl, suspend: str) -> None:
    kubectl.run("patch", "job", JOB, "--type=merge", "--patch", f'{{"spec": {{"suspend": {suspend}}}}}')


def _accounted_seconds(job: JobView) -> float:
    ledger = job.status["accounting"]
    kinds = ("queuedGpuSeconds", "startingGpuSeconds", "productiveGpuSeconds", "lostGpuSeconds")
    return float(sum(ledger[kind] for kind in kinds) / NUM_PROCESSES)


def test_a_gang_gives_its_place_up_with_a_checkpoint_and_goes_on_from_it(namespace: Kubectl) -> None:
    namespace.apply(_job())
    namespace.wait_for_job("queued", lambda job: job.step >= 15)
    _suspend(namespace, "true")
    waiting = namespace.wait_for_job("queued", lambda job: job.status["reason"] == "Queued")
    assert waiting.phase == "Pending"
    namespace.wait_until(
        "no pod holds anything", lambda: namespace.items("pods", "finetune.dev/stage=train") == [], timeout_seconds=60
    )
    conditions = namespace.get("job", JOB)["status"]["conditions"]
    assert [condition["type"] for condition in conditions if condition["status"] == "True"] == ["Suspended"]

    _suspend(namespace, "false")
    done = namespace.wait_for_job("queued", lambda job: job.phase == "Succeeded")
    (attempt,) = done.status["attempts"]
    assert attempt["resumedFromStep"] >= 15
    assert done.status["result"]["steps"] == TOTAL_STEPS
    assert done.status["restarts"] == 0

    wall_seconds = datetime.fromisoformat(done.status["completionTime"]) - datetime.fromisoformat(attempt["started"])
    assert _accounted_seconds(done) == wall_seconds.total_seconds()
    assert done.status["accounting"]["queuedGpuSeconds"] > 0
    assert done.status["accounting"]["productiveGpuSeconds"] > 0
