"""Names that collide or are as long as they may be, and what jobs share or have for themselves."""

import pytest

from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl, fresh_namespace

pytestmark = [pytest.mark.e2e, pytest.mark.beside]

LONGEST_NAME = "a-finetuning-job-with-a-name-as-long-as-the-api-server-takes-it"


def test_two_jobs_of_one_name_in_two_namespaces_do_not_meet(operator: Kubectl) -> None:
    with fresh_namespace(operator) as first, fresh_namespace(operator) as second:
        for namespace, seed in ((first, 1), (second, 2)):
            namespace.apply(tiny_job("twin", training__seed=seed, compute__nodes=1))
        digests = set()
        for namespace in (first, second):
            job = namespace.wait_for_job("twin", lambda job: job.phase == "Succeeded")
            digests.add(job.status["result"]["adapterDigest"])
            assert namespace.namespace in job.status["result"]["adapterPath"]
        assert len(digests) == 2


def test_a_name_of_63_characters_trains_on_two_nodes(namespace: Kubectl) -> None:
    assert len(LONGEST_NAME) == 63
    namespace.apply(tiny_job(LONGEST_NAME))
    namespace.wait_for_job(LONGEST_NAME, lambda job: job.phase == "Succeeded")


def test_a_shared_filesystem_alone_makes_one_indexed_job_of_two_pods(namespace: Kubectl) -> None:
    namespace.apply(tiny_job("one-role", storage__network=None))
    namespace.wait_for_job("one-role", lambda job: job.phase == "Succeeded")
    (job,) = namespace.items("jobs", "finetune.dev/stage=train")
    assert (job["spec"]["completions"], job["spec"]["completionMode"]) == (2, "Indexed")
    pods = namespace.items("pods", "finetune.dev/stage=train")
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node0", "node1"}


def test_a_second_job_on_the_same_claim_downloads_nothing(namespace: Kubectl) -> None:
    namespace.apply(tiny_job("first", compute__nodes=1, storage__network=None))
    namespace.wait_for_job("first", lambda job: job.phase == "Succeeded")
    second = tiny_job("second", compute__nodes=1, storage={"shared": {"claimName": "first-shared"}}, training__seed=7)
    namespace.apply(second)
    namespace.wait_for_job("second", lambda job: job.phase == "Succeeded")
    logs = {name: namespace.run("logs", f"job/{name}-prepare") for name in ("first", "second")}
    assert "download" in logs["first"].lower()
    assert "is in the cache" in logs["second"]
    assert "download" not in logs["second"].lower()
