"""How commands print to a pipe, to a terminal and for programs, and what they propose to a shell."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import CommandLine
from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl
from tests.integration.command_line.job_files import write_job
from tests.integration.control_plane import ControlPlane
from tests.integration.kubelet import bring_to
from tests.terminal import Terminal

pytestmark = pytest.mark.apiserver

PRINTING = {
    "status": ["status"],
    "status of one": ["status", "calls"],
    "submit": ["submit", "-f", "{job}", "--dry-run"],
    "plan": ["plan", "-f", "{job}"],
    "doctor": ["doctor", "calls", "--no-hub"],
    "compare": ["compare", "calls", "calls"],
    "cost": ["cost"],
    "watch": ["watch", "calls"],
    "an error": ["status", "nobody"],
}
COLOUR = re.compile(r"\x1b\[(?:\d+;)*[34]\d(?:;\d+)*m")


@pytest.fixture(scope="module")
def cli_beside_a_job(plane: ControlPlane, kubectl: Kubectl) -> CommandLine:
    """The command line in a namespace in which a job has succeeded."""
    kubectl.run("create", "namespace", "printed")
    bring_to(kubectl.within("printed"), "calls", "succeeded")
    return CommandLine(plane.admin_kubeconfig, "printed")


@pytest.mark.parametrize("command", PRINTING)
def test_nothing_that_is_piped_has_colours_even_where_the_terminal_could(
    cli_beside_a_job: CommandLine, tmp_path: Path, command: str
) -> None:
    words = [word.format(job=write_job(tmp_path, "new")) for word in PRINTING[command]]
    done = CommandLine(cli_beside_a_job.kubeconfig, "printed", {"TERM": "xterm-256color"}).run(*words)
    assert done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("words", [["status"], ["watch", "calls"], ["status", "nobody"]], ids=" ".join)
def test_a_terminal_has_colours_but_not_with_no_color(cli_beside_a_job: CommandLine, words: list[str]) -> None:
    written = {}
    for name, environment in (("as it is", {}), ("no colour", {"NO_COLOR": "1"})):
        with Terminal(cli_beside_a_job.words(*words), {**cli_beside_a_job.variables, **environment}) as terminal:
            terminal.wait(60)
        written[name] = terminal.raw.decode()
    assert COLOUR.search(written["as it is"])
    assert not COLOUR.search(written["no colour"])
    assert "Succeeded" in written["no colour"] or "not found" in written["no colour"]


@pytest.mark.parametrize("command", [name for name in PRINTING if name not in ("watch", "an error")])
def test_what_prints_prints_json_for_programs_too(cli_beside_a_job: CommandLine, tmp_path: Path, command: str) -> None:
    words = [word.format(job=write_job(tmp_path, "new")) for word in PRINTING[command]]
    done = cli_beside_a_job.run(*words, "-o", "json")
    assert json.loads(done.stdout)
    assert "calls" in done.stdout or "new" in done.stdout


def test_kubectl_completes_commands_options_and_the_names_of_jobs(cli: CommandLine, namespace: Kubectl) -> None:
    namespace.apply(tiny_job("calls", suspend=True), tiny_job("other", suspend=True))

    def propose(*words: str) -> list[str]:
        program = [sys.executable, "-m", "finetune_cli.completion", *words]
        return subprocess.run(program, capture_output=True, text=True, env=cli.variables, check=True).stdout.split()

    assert propose("wat") == ["watch", ":4"]
    assert propose("logs", "--fol") == ["--follow", ":4"]
    assert propose("watch", "-n", namespace.namespace, "") == ["calls", "other", ":4"]
    assert propose("submit", "-f", "") == [":0"]
