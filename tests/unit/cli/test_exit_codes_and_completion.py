"""The exit codes and the shell completion of `kubectl finetune` are where a person looks for them."""

import re
import subprocess
from pathlib import Path

import pytest

from finetune_cli.errors import ExitCode
from tests.command_line import PROGRAM, CommandLine

CODES = {0: "OK", 1: "FAILED", 2: "USAGE", 3: "UNREACHABLE", 4: "NOT_FOUND", 5: "FORBIDDEN"}
REFERENCE = Path("docs/reference/command-line.md").read_text(encoding="utf-8")


def test_the_exit_codes_are_what_scripts_rely_on() -> None:
    assert {int(code): code.name for code in ExitCode} == {**CODES, 124: "TIMED_OUT", 130: "INTERRUPTED"}


@pytest.mark.parametrize("code", [int(code) for code in ExitCode])
def test_each_exit_code_is_in_the_reference_with_its_meaning(code: int) -> None:
    assert re.search(rf"^\| {code} \| .{{20,}} \|$", REFERENCE, flags=re.MULTILINE)


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell that finds the program on its PATH."""
    program = tmp_path / "kubectl-finetune"
    program.write_text(f'#!/bin/sh\nexec {" ".join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    known = CommandLine(tmp_path / "no-cluster").variables
    return {**known, "PATH": f"{tmp_path}:{known['PATH']}", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_each_shell_is_for_the_program_and_not_for_kubectl(
    variables: dict[str, str], shell: str
) -> None:
    words = ["kubectl-finetune", "--show-completion", shell]
    script = subprocess.run(words, capture_output=True, text=True, env=variables, check=True).stdout
    assert "_KUBECTL_FINETUNE_COMPLETE" in script
    assert "kubectl-finetune" in script
    assert not re.search(r"kubectl\s+finetune", script)


def test_bash_completes_a_command_of_the_program(variables: dict[str, str]) -> None:
    script = """
        eval "$(kubectl-finetune --show-completion bash)"
        COMP_WORDS=(kubectl-finetune wat) COMP_CWORD=1
        $(complete -p kubectl-finetune | sed 's/.*-F \\([^ ]*\\).*/\\1/') kubectl-finetune
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=variables, check=False)
    assert done.stdout.split() == ["watch"], done.stderr
