"""Jobs deleted wherever they stand."""

import pytest

from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl

pytestmark = [pytest.mark.e2e, pytest.mark.beside]

CHILDREN = ("jobs", "pods", "services", "configmaps")


@pytest.mark.parametrize("phase", ["Preparing", "Starting", "Running", "Succeeded"])
def test_a_job_deleted_in_any_stage_leaves_only_its_claims(namespace: Kubectl, phase: str) -> None:
    name = f"deleted-{phase.lower()}"
    epochs = 2 if phase == "Succeeded" else 50
    namespace.apply(tiny_job(name, training__epochs=epochs))
    namespace.wait_for_job(name, lambda job: job.phase == phase)
    namespace.run("delete", "finetunejob", name, timeout_seconds=60)
    namespace.wait_until(
        "children are gone",
        lambda: not any(namespace.items(kind, f"finetune.dev/job={name}") for kind in CHILDREN),
        timeout_seconds=90,
    )
    claims = {claim["metadata"]["name"] for claim in namespace.items("persistentvolumeclaims")}
    assert claims == {f"{name}-shared", f"{name}-network"}


def test_claims_go_with_the_job_when_the_spec_says_so(namespace: Kubectl) -> None:
    namespace.apply(tiny_job("reclaimed", storage__reclaim="Delete", training__epochs=1, compute__nodes=1))
    namespace.wait_for_job("reclaimed", lambda job: job.phase == "Succeeded")
    namespace.run("delete", "finetunejob", "reclaimed")
    namespace.wait_until("claims are gone", lambda: not namespace.items("persistentvolumeclaims"), timeout_seconds=90)
