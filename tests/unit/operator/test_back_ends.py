"""Jobs and PyTorchJobs say how far they are in different words; here they are read."""

from typing import Any

import pytest

from finetune_operator import back_ends
from tests.unit.operator import kubernetes_objects as objects

Body = dict[str, Any]


def test_a_pytorch_job_has_the_pods_of_its_master_and_of_its_workers() -> None:
    assert back_ends.num_pods(objects.pytorch_job("demo-a1", workers=3)) == 4
    assert back_ends.num_pods(objects.pytorch_job("demo-a1", workers=0)) == 1


def test_a_job_has_a_pod_for_each_completion() -> None:
    assert back_ends.num_pods({"kind": "Job", "spec": {"completions": 3}}) == 3
    assert back_ends.num_pods({"kind": "Job", "spec": {}}) == 1


# What the training-operator v1.9.4 was seen to write, the newest condition not always last.
PYTORCH_JOBS: dict[str, tuple[list[tuple[str, str]], bool, bool]] = {
    "nothing was said yet": ([], False, False),
    "its pods run": ([("Created", "True"), ("Running", "True")], False, False),
    "it has ended well": ([("Created", "True"), ("Running", "False"), ("Succeeded", "True")], False, True),
    "a pod failed": ([("Created", "True"), ("Running", "False"), ("Failed", "True")], True, False),
    "it failed, and something else was said last": ([("Failed", "True"), ("Running", "False")], True, False),
    "it was called failed, and is so no longer": ([("Failed", "False"), ("Running", "True")], False, False),
}


@pytest.mark.parametrize(("conditions", "failed", "succeeded"), PYTORCH_JOBS.values(), ids=PYTORCH_JOBS.keys())
def test_the_conditions_of_a_pytorch_job_are_a_set(
    conditions: list[tuple[str, str]], failed: bool, succeeded: bool
) -> None:
    body = objects.pytorch_job("demo-a1")
    body["status"] = {"conditions": [{"type": kind, "status": status} for kind, status in conditions]}
    assert (back_ends.says_failed(body), back_ends.says_succeeded(body)) == (failed, succeeded)


def test_kueue_suspends_each_kind_in_its_own_field() -> None:
    suspended = objects.pytorch_job("demo-a1")
    suspended["spec"]["runPolicy"]["suspend"] = True
    assert back_ends.asks_to_suspend(suspended)
    assert not back_ends.asks_to_suspend(objects.pytorch_job("demo-a1"))
    assert back_ends.asks_to_suspend({"kind": "Job", "spec": {"suspend": True}})
    assert not back_ends.asks_to_suspend({"kind": "Job", "spec": {}})
