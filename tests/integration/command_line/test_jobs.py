"""`status`, `watch`, `logs`, `exec`, `suspend` and `resume` of jobs whose pods run nowhere."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.command_line import CommandLine
from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl
from tests.integration.command_line.job_files import write_job
from tests.integration.control_plane import ControlPlane
from tests.integration.kubelet import TRAIN, Kubelet, bring_to, wait_until_failed
from tests.unit.operator.kubernetes_objects import ended, failure_message

pytestmark = pytest.mark.apiserver


def test_status_shows_jobs_as_a_table_and_one_of_them_whole(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "succeeded")
    table = cli.output("status").splitlines()
    assert table[0].split() == [
        "NAME",
        "PHASE",
        "STEP",
        "LOSS",
        "ETA",
        "GPUS",
        "GPU-HOURS",
        "RESTARTS",
        "AGE",
        "REASON",
    ]
    assert table[1].split()[:4] == ["calls", "Succeeded", "30/30", "2.250"]
    assert namespace.namespace in cli.output("status", "-A")
    whole = cli.output("status", "calls")
    assert "loss 5.500 -> 2.250 in 30 steps" in whole
    assert "sha256:00ff" in whole
    assert "\x1b" not in whole


def test_status_as_json_yaml_and_name_is_what_kubectl_would_print(cli: CommandLine, namespace: Kubectl) -> None:
    namespace.apply(tiny_job("calls", suspend=True))
    assert json.loads(cli.output("status", "calls", "-o", "json"))["metadata"]["name"] == "calls"
    listed = yaml.safe_load(cli.output("status", "-o", "yaml"))
    assert (listed["kind"], [item["metadata"]["name"] for item in listed["items"]]) == ("List", ["calls"])
    assert cli.output("status", "-o", "name") == "finetunejob.finetune.dev/calls\n"


def test_no_jobs_are_told_on_standard_error_and_are_no_error(cli: CommandLine) -> None:
    done = cli.run("status")
    assert (done.exit_code, done.stdout) == (0, "")
    assert f"No FineTuneJobs found in namespace {cli.namespace}." in done.stderr


def test_a_job_that_is_not_there_ends_with_4(cli: CommandLine) -> None:
    done = cli.run("status", "nobody")
    assert done.exit_code == 4
    assert '"nobody" not found' in done.stderr


def test_an_api_server_that_does_not_answer_ends_with_3(plane: ControlPlane, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(plane.admin_kubeconfig.read_text().replace(plane.url, "https://127.0.0.1:1"))
    done = CommandLine(kubeconfig).run("status")
    assert done.exit_code == 3
    assert "does not answer" in done.stderr


def test_a_user_without_rights_ends_with_5(plane: ControlPlane, namespace: Kubectl) -> None:
    """The operator's own credentials may not read Secrets or get single FineTuneJobs of a person."""
    done = CommandLine(plane.operator_kubeconfig, namespace.namespace).run("status", "calls")
    assert done.exit_code == 5
    assert "not permitted" in done.stderr


def test_an_unknown_option_ends_with_2(cli: CommandLine) -> None:
    assert cli.run("status", "--nonsense").exit_code == 2


def test_the_context_decides_where_its_namespace_is(plane: ControlPlane, namespace: Kubectl, tmp_path: Path) -> None:
    namespace.apply(tiny_job("calls", suspend=True))
    document = yaml.safe_load(plane.admin_kubeconfig.read_text())
    other = {"name": "other", "context": {"cluster": "test", "user": "test", "namespace": namespace.namespace}}
    document["contexts"].append(other)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(document))
    cli = CommandLine(Path("/nonexistent"))
    words = [*cli.words()[:3], "status", "-o", "name", "--kubeconfig", str(kubeconfig), "--context", "other"]
    done = subprocess.run(words, capture_output=True, text=True, env=cli.variables, check=True)
    assert done.stdout == "finetunejob.finetune.dev/calls\n"


def test_watch_without_a_terminal_prints_lines_and_ends_as_the_job_does(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "succeeded")
    done = cli.run("watch", "calls")
    assert done.exit_code == 0
    assert "Accepted: 2 x 1 CPU process." in done.stdout
    assert "Succeeded: loss 5.500 -> 2.250 in 30 steps." in done.stdout
    assert "\x1b" not in done.stdout


def test_watch_of_a_job_that_failed_ends_with_1_and_says_why(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "failed")
    done = cli.run("watch", "calls")
    assert done.exit_code == 1
    assert "Failed (Diverged): loss is NaN at step 3." in done.stdout


def test_watch_gives_up_after_its_timeout_and_leaves_the_job_alone(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "preparing")
    done = cli.run("watch", "calls", "--timeout", "1")
    assert done.exit_code == 124
    assert namespace.job("calls").phase in ("Preparing", "Pending")


def test_submit_and_watch_ends_as_the_job_does(cli: CommandLine, namespace: Kubectl, tmp_path: Path) -> None:
    words = cli.words("submit", "-f", write_job(tmp_path), "--watch")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=cli.variables) as watching:
        namespace.wait_until("the job is there", lambda: bool(namespace.items("finetunejobs")))
        kubelet = Kubelet(namespace, "calls")
        kubelet.prepare()
        pods = kubelet.pods(TRAIN, 2)
        kubelet.set_status(pods[1], ended(failure_message("Diverged", "loss is NaN at step 3"), exit_code=1))
        wait_until_failed(namespace, "calls")
        output, _ = watching.communicate(timeout=60)
    assert watching.returncode == 1
    assert "Failed (Diverged)" in output


def test_suspend_and_resume_change_the_job_once(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "preparing")
    assert cli.output("suspend", "calls", "--wait") == "finetunejob.finetune.dev/calls suspended\n"
    assert namespace.job("calls").phase == "Suspended"
    assert cli.output("suspend", "calls").endswith("suspended (unchanged)\n")
    assert cli.output("resume", "calls", "--wait").endswith("resumed\n")
    assert namespace.job("calls").body["spec"]["suspend"] is False


def test_a_job_that_has_ended_cannot_be_suspended(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "succeeded")
    done = cli.run("suspend", "calls")
    assert done.exit_code == 1
    assert "has ended (Succeeded)" in done.stderr


def test_logs_of_a_job_without_pods_say_why_there_are_none(cli: CommandLine, namespace: Kubectl) -> None:
    namespace.apply(tiny_job("calls", suspend=True))
    namespace.wait_for_job("calls", lambda job: job.phase == "Suspended", timeout_seconds=20)
    done = cli.run("logs", "calls")
    assert done.exit_code == 4
    assert "Set spec.suspend to false" in done.stderr


def test_logs_of_a_rank_that_the_job_does_not_have_name_those_that_it_has(cli: CommandLine, namespace: Kubectl) -> None:
    namespace.apply(tiny_job("calls", suspend=True))
    done = cli.run("logs", "calls", "--rank", "2")
    assert done.exit_code == 4
    assert "its ranks are 0 to 1" in done.stderr


def test_exec_where_nothing_runs_ends_with_4(cli: CommandLine, namespace: Kubectl) -> None:
    namespace.apply(tiny_job("calls", suspend=True))
    assert cli.run("exec", "calls", "--", "hostname").exit_code == 4
