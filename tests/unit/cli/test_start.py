"""What a command imports before it does anything: what reaches a cluster is half of it, and loaded where it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import CommandLine

REACHES_A_CLUSTER = {"kubernetes", "urllib3", "requests", "websocket"}


def imported(module: str, *words: str) -> set[str]:
    """Return the packages that a program imports, as Python itself tells."""
    command = [sys.executable, "-X", "importtime", "-m", module, *words]
    known = CommandLine(Path("/nonexistent/kubeconfig")).variables
    told = subprocess.run(command, capture_output=True, text=True, env=known, check=False).stderr.splitlines()
    names = [line.rpartition("|")[2].strip() for line in told if line.startswith("import time:")]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("words", [("--help",), ("status", "--help"), ("status", "--no-such-option")], ids=" ".join)
def test_help_and_a_mistyped_option_load_nothing_that_reaches_a_cluster(words: tuple[str, ...]) -> None:
    loaded = imported("finetune_cli", *words)
    assert "typer" in loaded
    assert not loaded & REACHES_A_CLUSTER


def test_a_job_is_written_without_anything_that_reaches_a_cluster(tmp_path: Path) -> None:
    loaded = imported("finetune_cli", "init", str(tmp_path / "job.yaml"), "--yes")
    assert (tmp_path / "job.yaml").exists()
    assert not loaded & REACHES_A_CLUSTER


def test_a_shell_that_completes_a_command_waits_for_nothing_that_reaches_a_cluster() -> None:
    assert not imported("finetune_cli.completion", "wat") & REACHES_A_CLUSTER


def test_a_command_that_asks_a_cluster_is_seen_to_load_what_reaches_one() -> None:
    assert imported("finetune_cli", "status") >= {"kubernetes", "urllib3"}
