"""What is heard of a job's children while things take their course can wait; what ends, fails or goes cannot."""

from typing import Any

import pytest

from finetune_operator.news import can_wait
from tests.unit.operator import kubernetes_objects as objects

Body = dict[str, Any]
CONDITION = {"status": "True", "lastTransitionTime": objects.CREATED}
JOB: Body = {"kind": "Job", "metadata": {"name": "demo-prepare"}, "status": {"startTime": objects.CREATED}}


def pod(stage: str, **status: Any) -> Body:
    body = objects.pod("demo-pod", **status)
    return body | {"metadata": body["metadata"] | {"labels": {"finetune.dev/stage": stage}}}


def leaving(body: Body) -> Body:
    return body | {"metadata": body["metadata"] | {"deletionTimestamp": objects.ENDED}}


def job(*conditions: str) -> Body:
    return JOB | {"status": JOB["status"] | {"conditions": [{"type": told, **CONDITION} for told in conditions]}}


@pytest.mark.parametrize(
    "body",
    [
        pod("train"),
        pod("train", conditions=[{"type": "PodScheduled", "status": "True"}]),
        pod("train", **objects.waiting("ContainerCreating")),
        pod("train", **objects.waiting("PodInitializing")),
        pod("prepare"),
        pod("prepare", **objects.running()),
        pod("evaluate", **objects.running()),
        pod("prepare", phase="Succeeded"),
        JOB,
        job("SuccessCriteriaMet"),
    ],
    ids=str,
)
def test_what_takes_its_course_can_wait(body: Body) -> None:
    assert can_wait(body)


@pytest.mark.parametrize(
    "body",
    [
        pod("train", **objects.running()),
        pod("train", phase="Succeeded"),
        pod("train", phase="Failed"),
        pod("prepare", phase="Failed"),
        pod("train", **objects.waiting("ErrImagePull")),
        pod("train", **objects.ended(exit_code=1) | {"phase": "Pending"}),
        job("Complete"),
        job("SuccessCriteriaMet", "Complete"),
        job("FailureTarget"),
        job("Suspended"),
        {"kind": "Service", "metadata": {"name": "demo-a1"}},
        {"kind": "PersistentVolumeClaim", "metadata": {"name": "demo-shared"}, "status": {"phase": "Pending"}},
        objects.pytorch_job("demo-a1"),
    ],
    ids=str,
)
def test_what_something_follows_from_cannot_wait(body: Body) -> None:
    assert not can_wait(body)


@pytest.mark.parametrize("body", [pod("train"), pod("prepare", **objects.running()), JOB], ids=str)
def test_what_goes_cannot_wait_because_its_cause_goes_with_it(body: Body) -> None:
    assert not can_wait(leaving(body))
