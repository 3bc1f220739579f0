"""`kubectl finetune` as people run it who are no administrators: with the ClusterRole `edit` or `view`, nothing else.

The chart adds FineTuneJobs to both; a real API server, its own roles and its controller that aggregates them decide.
No node runs here: that logs, exec and download get through to a pod with `edit` is seen in tests/e2e.
"""

import json
import uuid
from pathlib import Path

import pytest
import yaml

from tests.command_line import CommandLine, Finished
from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl
from tests.integration.kubelet import bring_to
from tests.users import user_with_role

pytestmark = pytest.mark.apiserver

FORBIDDEN, TIMED_OUT = 5, 124


@pytest.fixture(scope="module")
def team(kubectl: Kubectl) -> Kubectl:
    """A namespace with a job that has succeeded, one that trains, and one that rests."""
    name = f"team-{uuid.uuid4().hex[:8]}"
    kubectl.run("create", "namespace", name)
    kubectl = kubectl.within(name)
    kubectl.run("create", "secret", "generic", "tokens", "--from-literal=HF_TOKEN=hf_never_to_be_seen")
    bring_to(kubectl, "done", "succeeded", secretName="tokens")
    bring_to(kubectl, "trains", "running")
    kubectl.apply(tiny_job("rests", suspend=True))
    return kubectl


@pytest.fixture(scope="module")
def edit(team: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return _person(team, "edit", tmp_path_factory.mktemp("edit"))


@pytest.fixture(scope="module")
def view(team: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return _person(team, "view", tmp_path_factory.mktemp("view"))


def _person(team: Kubectl, role: str, directory: Path) -> CommandLine:
    cli = CommandLine(user_with_role(team, role, directory), team.namespace)
    team.wait_until(f"{role} has FineTuneJobs", lambda: cli.run("status").exit_code == 0, timeout_seconds=30)
    return cli


def _job_file(directory: Path, name: str) -> tuple[str, str]:
    """Return a job's file and one with its token."""
    file, env_file = directory / "job.yaml", directory / ".env"
    file.write_text(yaml.safe_dump(tiny_job(name, secretName=f"{name}-tokens", suspend=True)))
    env_file.write_text("HF_TOKEN=hf_never_to_be_seen\n")
    return str(file), str(env_file)


# Commands that change nothing, and a word of what each of them prints.
READING = {
    "status": (["status"], "trains"),
    "status of one": (["status", "done"], "loss 5.500 -> 2.250"),
    "watch": (["watch", "done"], "Succeeded: loss 5.500 -> 2.250"),
    "compare": (["compare", "done", "trains"], "final loss"),
    "cost": (["cost"], "(all)"),
    "doctor": (["doctor", "done", "--no-hub"], "has looked at this job"),
}


@pytest.mark.parametrize("role", ["edit", "view"])
@pytest.mark.parametrize("command", READING)
def test_who_may_view_reads_everything_that_is_told_of_jobs(
    request: pytest.FixtureRequest, role: str, command: str
) -> None:
    cli: CommandLine = request.getfixturevalue(role)
    words, expected = READING[command]
    assert expected in cli.output(*words)


@pytest.mark.parametrize("role", ["edit", "view"])
def test_logs_are_asked_for_with_no_more_than_view(request: pytest.FixtureRequest, role: str) -> None:
    """The API server lets the request through to the pod, which runs nowhere."""
    done = request.getfixturevalue(role).run("logs", "trains")
    assert done.exit_code != FORBIDDEN
    assert "not permitted" not in done.stderr


@pytest.mark.parametrize("role", ["edit", "view"])
def test_plan_does_without_the_nodes_that_neither_role_may_list_and_says_so(
    request: pytest.FixtureRequest, role: str, tmp_path: Path
) -> None:
    file, _ = _job_file(tmp_path, "planned")
    done = request.getfixturevalue(role).run("plan", "-f", file)
    assert done.exit_code == 0, done.stderr
    assert "Nodes were not looked at: your role may not list them" in done.stderr
    assert "as job done found it" in done.stdout


def test_doctor_tells_what_a_role_may_not_look_at(edit: CommandLine, view: CommandLine) -> None:
    unseen = {}
    for role, cli in (("edit", edit), ("view", view)):
        findings = json.loads(cli.output("doctor", "done", "--no-hub", "-o", "json"))
        unseen[role] = {finding["message"] for finding in findings if finding["level"] == "unknown"}
    assert unseen["edit"] == {"your role may not look at nodes"}
    assert unseen["view"] == {"your role may not look at nodes", "your role may not look at secrets"}


# --- with `edit` everything works -------------------------------------------------------------------------------------


def test_edit_submits_a_job_with_its_tokens_suspends_it_and_lets_it_go_on(edit: CommandLine, tmp_path: Path) -> None:
    file, env_file = _job_file(tmp_path, "mine")
    submitted = edit.run("submit", "-f", file, "--env-file", env_file)
    assert submitted.stdout == "finetunejob.finetune.dev/mine created\n", submitted.stderr
    assert "secret/mine-tokens created (HF_TOKEN)" in submitted.stderr
    again = edit.run("submit", "-f", file, "--env-file", env_file)
    assert "secret/mine-tokens configured (HF_TOKEN)" in again.stderr
    assert edit.output("resume", "mine", "--wait").endswith("resumed\n")
    assert edit.output("suspend", "mine", "--wait").endswith("suspended\n")


def test_edit_retries_a_job(edit: CommandLine, team: Kubectl) -> None:
    done = edit.run("retry", "done", "--from-step", "0", "--name", "again")
    assert done.stdout == "finetunejob.finetune.dev/again created (from the start of done)\n", done.stderr
    assert team.job("again").body["spec"]["suspend"] is False


@pytest.mark.parametrize(
    "words",
    [
        ["retry", "done", "--from-step", "4", "--name", "copied", "--timeout", "2"],
        ["prune", "--claim", "done-shared", "--timeout", "2"],
        ["download", "done", "{directory}/adapter", "--timeout", "2"],
    ],
    ids=lambda words: words[0],
)
def test_edit_may_start_the_pod_that_a_command_needs_and_takes_it_away_again(
    edit: CommandLine, team: Kubectl, words: list[str], tmp_path: Path
) -> None:
    """No node takes the pod, so time runs out; that it could be made and deleted is what is seen."""
    done = edit.run(*(word.format(directory=tmp_path) for word in words))
    assert done.exit_code == TIMED_OUT, done.stderr
    team.wait_until("it is gone", lambda: not team.items("jobs,pods", "app.kubernetes.io/name=kubectl-finetune"))
    assert "copied" not in [job["metadata"]["name"] for job in team.items("finetunejobs")]


def test_edit_may_run_commands_in_pods(edit: CommandLine) -> None:
    done = edit.run("exec", "trains", "--", "hostname")
    assert done.exit_code == 1
    assert "no command can be run in it" in done.stdout, done.stderr  # it is on no node


# --- with `view` nothing is changed -----------------------------------------------------------------------------------


WRITING = {
    "submit": ["submit", "-f", "{file}"],
    "submit with tokens": ["submit", "-f", "{file}", "--env-file", "{env_file}"],
    "submit, dry run": ["submit", "-f", "{file}", "--dry-run"],
    "suspend": ["suspend", "trains"],
    "resume": ["resume", "rests"],
    "retry": ["retry", "done", "--from-step", "0"],
    "retry from a checkpoint": ["retry", "done"],
    "exec": ["exec", "trains", "--", "hostname"],
    "download": ["download", "done", "{directory}/adapter"],
    "prune": ["prune", "--claim", "done-shared"],
}


def _state(team: Kubectl) -> dict[str, object]:
    names = team.run("get", "finetunejobs,secrets,jobs,pods", "--output", "name").split()
    return {
        "objects": names,
        "suspended": [team.job(name).body["spec"].get("suspend") for name in ("trains", "rests")],
    }


@pytest.mark.parametrize("command", WRITING)
def test_view_is_refused_whatever_changes_something_and_told_which_role_it_takes(
    view: CommandLine, team: Kubectl, command: str, tmp_path: Path
) -> None:
    file, env_file = _job_file(tmp_path, "theirs")
    before = _state(team)
    words = [word.format(file=file, env_file=env_file, directory=tmp_path) for word in WRITING[command]]
    done: Finished = view.run(*words)
    assert done.exit_code == FORBIDDEN, done.stdout + done.stderr
    assert "not permitted" in done.stderr
    assert "`edit`" in done.stderr
    assert "hf_never_to_be_seen" not in done.stdout + done.stderr
    assert _state(team) == before


def test_neither_role_reaches_another_namespace(edit: CommandLine, team: Kubectl) -> None:
    elsewhere = CommandLine(edit.kubeconfig, "default")
    for words in (["status"], ["status", "-A"], ["suspend", "trains"]):
        done = elsewhere.run(*words)
        assert done.exit_code == FORBIDDEN, done.stdout + done.stderr
    assert "Ask for the ClusterRole `view` in namespace default" in elsewhere.run("status").stderr


def test_the_roles_of_the_chart_add_finetunejobs_and_nothing_else(team: Kubectl) -> None:
    """Least privilege: `status` is the operator's to write, and no verb is there that no command needs."""
    granted = {role: team.get("clusterrole", f"finetune-operator-{role}")["rules"] for role in ("edit", "view")}
    assert granted["view"] == [
        {"apiGroups": ["finetune.dev"], "resources": ["finetunejobs"], "verbs": ["get", "list", "watch"]}
    ]
    assert granted["edit"] == [
        {
            "apiGroups": ["finetune.dev"],
            "resources": ["finetunejobs"],
            "verbs": ["create", "delete", "deletecollection", "patch", "update"],
        }
    ]
