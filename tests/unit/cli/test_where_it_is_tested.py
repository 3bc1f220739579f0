"""Each command is run on the embedded cluster and with the roles that people have, the live ones in a real terminal."""

from pathlib import Path

import pytest
import typer

from finetune_cli.app import app

ON_THE_CLUSTER = Path("tests/e2e/test_command_line.py").read_text(encoding="utf-8")
WITH_ROLES = Path("tests/integration/command_line/test_roles.py").read_text(encoding="utf-8")
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
WITHOUT_A_CLUSTER = {"init", "local"}


def test_these_are_the_commands() -> None:
    assert [
        *("compare", "cost", "doctor", "download", "exec", "init", "local", "logs", "plan", "prune", "resume", "retry"),
        *("status", "submit", "suspend", "watch"),
    ] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_run_on_the_embedded_cluster(command: str) -> None:
    assert f'"{command}"' in ON_THE_CLUSTER


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in WITHOUT_A_CLUSTER])
def test_each_command_that_asks_a_cluster_is_run_with_the_roles_edit_and_view(command: str) -> None:
    assert f'"{command}"' in WITH_ROLES


@pytest.mark.parametrize("words", ['"watch", name', '"logs", NAME, "--follow"', '"--watch"'])
def test_the_live_commands_are_run_in_a_terminal_whose_screen_is_read(words: str) -> None:
    assert words in ON_THE_CLUSTER
    assert "Terminal(cli.words(" in ON_THE_CLUSTER
    assert "Terminal(submit, " in ON_THE_CLUSTER
