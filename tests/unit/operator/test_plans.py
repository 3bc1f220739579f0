"""A job is read and planned anew when it has changed, and only then."""

import pytest

from finetune_operator.errors import InvalidJob
from finetune_operator.plans import Plans
from finetune_operator.store import JobKey
from tests.factories import SETTINGS, manifest

CALLS = JobKey("team-a", "calls")
SHARED = {"storage": {"shared": {"claimName": "data", "size": None, "storageClassName": None}}}


def test_a_job_that_has_not_changed_keeps_its_plan() -> None:
    plans, body = Plans(SETTINGS), manifest()
    assert plans.plan(CALLS, body, {}) is plans.plan(CALLS, body, {})


def test_a_new_version_of_a_job_is_planned_anew_and_its_status_read_anew() -> None:
    plans, body = Plans(SETTINGS), manifest({"compute": {"nodes": 1}})
    assert plans.plan(CALLS, body, {}).num_nodes == 1
    body = manifest({"compute": {"nodes": 2}}) | {"status": {"phase": "Pending"}}
    assert plans.plan(CALLS, body, {}).num_nodes == 2
    assert plans.status(CALLS, body).phase == "Pending"


def test_a_claim_that_comes_to_be_seen_changes_the_plan() -> None:
    plans, body = Plans(SETTINGS), manifest(SHARED)
    assert plans.plan(CALLS, body, {}).missing_claims == ("data",)
    assert plans.plan(CALLS, body, {"data": ("ReadWriteMany",)}).missing_claims == ()


def test_what_was_told_of_a_job_is_known_even_if_its_spec_cannot_be_read() -> None:
    plans, body = Plans(SETTINGS), manifest({"compute": {"nodes": -1}}) | {"status": {"phase": "Pending"}}
    with pytest.raises(InvalidJob):
        plans.plan(CALLS, body, {})
    assert plans.status(CALLS, body).phase == "Pending"
