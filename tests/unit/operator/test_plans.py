"""A job is read and planned anew when it has changed, and only then."""

from typing import Any

import pytest

from finetune_operator.api.status import FineTuneJobStatus, Phase
from finetune_operator.build import wanted
from finetune_operator.errors import InvalidJob
from finetune_operator.plans import Plans
from finetune_operator.store import JobKey
from tests.factories import SETTINGS, manifest

CALLS = JobKey("team-a", "calls")
BUILT = {"metadata": {"annotations": {"finetune.dev/manifest-digest": "sha256:some"}}}
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


def later(body: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """The next version of a job."""
    return body | {"metadata": body["metadata"] | {"resourceVersion": "2"}} | parts


def test_what_was_told_is_taken_into_the_plan_that_is_there() -> None:
    plans, body = Plans(SETTINGS), manifest()
    before = plans.plan(CALLS, body, {})
    told = later(body, status={"phase": "Preparing"})
    plans.told(CALLS, told, {"phase": "Preparing"}, FineTuneJobStatus(phase=Phase.PREPARING))
    after = plans.plan(CALLS, told, {})
    assert after.job.status.phase is Phase.PREPARING
    assert after.job.spec is before.job.spec


def test_what_somebody_else_has_told_meanwhile_is_not_taken_for_what_we_told() -> None:
    plans, body = Plans(SETTINGS), manifest()
    plans.plan(CALLS, body, {})
    told = later(body, status={"phase": "Starting"})
    plans.told(CALLS, told, {"phase": "Preparing"}, FineTuneJobStatus(phase=Phase.PREPARING))
    assert plans.plan(CALLS, told, {}).job.status.phase is Phase.STARTING


@pytest.mark.parametrize(
    "change", [{"labels": {"kueue.x-k8s.io/queue-name": "gpus"}}, {"generation": 2}, {"uid": "another"}], ids=str
)
def test_a_job_whose_metadata_has_changed_is_read_anew(change: dict[str, Any]) -> None:
    plans, body = Plans(SETTINGS), manifest()
    plans.plan(CALLS, body, {})
    changed = later(body, metadata=body["metadata"] | change)
    metadata = plans.plan(CALLS, changed, {}).job.metadata
    assert {name: getattr(metadata, name) for name in change} == change


def test_a_manifest_is_built_once_to_see_that_a_child_is_as_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    plans, body, built = Plans(SETTINGS), manifest(), list[str]()
    monkeypatch.setattr(wanted, "build_config_map", lambda plan: built.append(plan.name) or BUILT)
    first = wanted.shared_by_stages(plans.plan(CALLS, body, {}))[-1].digest()
    plans.told(CALLS, later(body), {}, FineTuneJobStatus(phase=Phase.PREPARING))
    again = wanted.shared_by_stages(plans.plan(CALLS, later(body, status={"phase": "Running"}), {}))[-1].digest()
    assert (first, again) == ("sha256:some", "sha256:some")
    assert len(built) == 1


def test_what_is_told_of_a_job_changes_no_manifest() -> None:
    plan = Plans(SETTINGS).plan(CALLS, manifest(), {})
    other = Plans(SETTINGS).plan(CALLS, manifest() | {"status": {"phase": "Running", "restarts": 3}}, {})
    for item, same in zip(wanted.gang(plan, 2), wanted.gang(other, 2), strict=True):
        assert item.build() == same.build()


def test_a_claim_that_comes_to_be_seen_changes_the_plan() -> None:
    plans, body = Plans(SETTINGS), manifest(SHARED)
    assert plans.plan(CALLS, body, {}).missing_claims == ("data",)
    assert plans.plan(CALLS, body, {"data": ("ReadWriteMany",)}).missing_claims == ()


def test_what_was_told_of_a_job_is_known_even_if_its_spec_cannot_be_read() -> None:
    plans, body = Plans(SETTINGS), manifest({"compute": {"nodes": -1}}) | {"status": {"phase": "Pending"}}
    with pytest.raises(InvalidJob):
        plans.plan(CALLS, body, {})
    assert plans.status(CALLS, body).phase == "Pending"
