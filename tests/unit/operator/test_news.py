"""What is heard of a job's children while things take their course matters little; what ends, fails or goes does."""

from typing import Any

import pytest

from finetune_operator.news import Weight, weigh
from tests.unit.operator import kubernetes_objects as objects

Body = dict[str, Any]
CONDITION = {"status": "True", "lastTransitionTime": objects.CREATED}
JOB: Body = {"kind": "Job", "metadata": {"name": "demo-prepare"}, "status": {"startTime": objects.CREATED}}
UNTOUCHED: Body = JOB | {"status": {}}


def pod(stage: str, **status: Any) -> Body:
    body = objects.pod("demo-pod", **status)
    return body | {"metadata": body["metadata"] | {"labels": {"finetune.dev/stage": stage}}}


def scheduled(answer: str) -> Body:
    return {"conditions": [{"type": "PodScheduled", "status": answer}]}


def init_container(**state: Any) -> Body:
    return {"initContainerStatuses": [{"name": "init-pytorch", "state": state}], **objects.waiting("PodInitializing")}


def leaving(body: Body) -> Body:
    return body | {"metadata": body["metadata"] | {"deletionTimestamp": objects.ENDED}}


def job(*conditions: str) -> Body:
    return JOB | {"status": JOB["status"] | {"conditions": [{"type": told, **CONDITION} for told in conditions]}}


@pytest.mark.parametrize(
    ("body", "before"),
    [
        (pod("train", **scheduled("True")), pod("train")),
        (pod("train", **objects.waiting("ContainerCreating")), pod("train", **scheduled("True"))),
        (pod("train", **objects.waiting("PodInitializing")), pod("train")),
        (pod("train", **init_container(running={})), pod("train")),
        (pod("train", **init_container(terminated={"exitCode": 0})), pod("train")),
        (pod("prepare", **scheduled("True")), pod("prepare")),
        (job("SuccessCriteriaMet"), JOB),
    ],
    ids=str,
)
def test_nothing_follows_from_what_takes_its_course(body: Body, before: Body | None) -> None:
    assert weigh(body, before, ()) is Weight.NOTHING_FOLLOWS


@pytest.mark.parametrize(
    ("body", "before"),
    [
        (JOB, UNTOUCHED),
        (JOB, None),
        # A quota may have refused it until now.
        (pod("train"), None),
        (pod("prepare"), None),
        (pod("prepare", **objects.running()), pod("prepare")),
        (pod("evaluate", **objects.running()), pod("evaluate")),
        (pod("prepare", phase="Succeeded"), pod("prepare", **objects.running())),
        (pod("train", **scheduled("False")), pod("train")),
        (pod("prepare", **objects.waiting("ErrImagePull")), pod("prepare")),
        ({"kind": "Service", "metadata": {"name": "demo-a1"}}, None),
        ({"kind": "ConfigMap", "metadata": {"name": "demo-job"}}, None),
    ],
    ids=str,
)
def test_what_may_be_told_of_can_wait_a_moment(body: Body, before: Body | None) -> None:
    assert weigh(body, before, ()) is Weight.CAN_WAIT


@pytest.mark.parametrize("stage", ["train", "prepare"])
def test_what_was_told_of_a_pod_that_found_no_node_is_taken_back_in_a_moment(stage: str) -> None:
    assert weigh(pod(stage, **scheduled("True")), pod(stage, **scheduled("False")), ()) is Weight.CAN_WAIT


def test_a_pod_that_runs_can_wait_for_the_rest_of_its_gang_and_the_last_one_cannot() -> None:
    runs, yet_to_come = pod("train", **objects.running()), pod("train", **objects.waiting("ContainerCreating"))
    assert weigh(runs, yet_to_come, (runs, yet_to_come)) is Weight.CAN_WAIT
    assert weigh(runs, yet_to_come, (runs, runs)) is Weight.AT_ONCE


@pytest.mark.parametrize(
    ("body", "before"),
    [
        (pod("train", **objects.running()), pod("train")),
        (pod("train", phase="Succeeded"), pod("train", **objects.running())),
        (pod("train", phase="Failed"), pod("train", **objects.running())),
        (pod("prepare", phase="Failed"), pod("prepare", **objects.running())),
        (pod("train", **objects.waiting("ErrImagePull")), pod("train")),
        (pod("train", **objects.ended(exit_code=1) | {"phase": "Pending"}), pod("train")),
        (job("Complete"), job("SuccessCriteriaMet")),
        (job("SuccessCriteriaMet", "Complete"), JOB),
        (job("FailureTarget"), JOB),
        (job("Suspended"), JOB),
        ({"kind": "PersistentVolumeClaim", "metadata": {"name": "demo-shared"}, "status": {"phase": "Pending"}}, None),
        (objects.pytorch_job("demo-a1"), None),
    ],
    ids=str,
)
def test_what_something_follows_from_cannot_wait(body: Body, before: Body | None) -> None:
    assert weigh(body, before, ()) is Weight.AT_ONCE


def test_a_pod_that_ends_does_not_wait_for_those_that_are_yet_to_come() -> None:
    before, yet_to_come = pod("train", **objects.running()), pod("train")
    assert weigh(pod("train", phase="Failed"), before, (yet_to_come,)) is Weight.AT_ONCE


@pytest.mark.parametrize("state", [{"waiting": {"reason": "ErrImagePull"}}, {"terminated": {"exitCode": 1}}], ids=str)
def test_an_init_container_in_trouble_is_looked_at(state: Body) -> None:
    assert weigh(pod("train", **init_container(**state)), pod("train"), ()) is not Weight.NOTHING_FOLLOWS


@pytest.mark.parametrize("body", [pod("train"), pod("prepare", **objects.running()), JOB], ids=str)
def test_what_goes_cannot_wait_because_its_cause_goes_with_it(body: Body) -> None:
    assert weigh(leaving(body), body, ()) is Weight.AT_ONCE
