"""`doctor`, `retry`, `compare` and `cost` of jobs that went wrong."""

import json

import pytest

from tests.command_line import CommandLine
from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl
from tests.integration.kubelet import bring_to

pytestmark = pytest.mark.apiserver


def test_doctor_names_what_is_wrong_and_what_mends_it(cli: CommandLine, namespace: Kubectl) -> None:
    broken = tiny_job(
        "broken",
        compute={"nodes": 2, "gpusPerNode": 8},
        storage={"shared": {"size": "1Gi", "storageClassName": "no-such"}},
        secretName="none",
        tracking={"wandb": {"project": "p"}},
    )
    namespace.apply(broken)
    namespace.wait_for_job("broken", lambda job: job.phase == "Preparing", timeout_seconds=20)
    done = cli.run("doctor", "broken", "-o", "json")
    assert done.exit_code == 1
    problems = {finding["subject"]: finding for finding in json.loads(done.stdout) if finding["level"] == "problem"}
    assert set(problems) == {"secret", "storage", "nodes"}
    assert problems["secret"]["command"].startswith("kubectl create secret generic none")
    assert problems["storage"]["command"] == "kubectl get storageclass"


def test_a_retried_job_starts_anew_beside_the_old_one_and_both_are_compared(
    cli: CommandLine, namespace: Kubectl
) -> None:
    bring_to(namespace, "calls", "failed")
    done = cli.run("retry", "calls", "--from-step", "0")
    assert done.stdout == "finetunejob.finetune.dev/calls-retry-1 created (from the start of calls)\n", done.stderr
    new = namespace.wait_for_job("calls-retry-1", lambda job: job.phase == "Preparing", timeout_seconds=30)
    assert new.body["spec"]["storage"]["shared"] == {"claimName": "calls-shared"}
    assert new.body["spec"]["model"]["huggingFace"]["revision"] == "0123456789abcdef0123456789abcdef01234567"
    assert namespace.job("calls").phase == "Failed"
    compared = cli.output("compare", "calls", "calls-retry-1")
    assert "storage.shared.claimName" in compared
    assert cli.output("cost").splitlines()[-1].startswith("(all)")


def test_a_checkpoint_that_cannot_be_copied_in_time_leaves_no_job_behind(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "failed")
    done = cli.run("retry", "calls", "--from-step", "4", "--timeout", "2")
    assert done.exit_code == 124
    assert [job["metadata"]["name"] for job in namespace.items("finetunejobs")] == ["calls"]
    assert not [job for job in namespace.items("jobs") if "adopt" in job["metadata"]["name"]]
