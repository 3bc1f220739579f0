"""Completes `kubectl finetune wat<TAB>`: kubectl asks the program `kubectl_complete-finetune` on the PATH.

It answers as kubectl's own completion does (cobra's `__complete`): a proposal a line, then `:` and a number.
https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins/#adding-completion
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from finetune_cli.app import app
from finetune_cli.errors import CommandError

# cobra's ShellCompDirectiveNoFileComp, and the default, which lets the shell complete file names.
_NO_FILES, _FILES = 4, 0
_FILE_OPTIONS = ("-f", "--filename", "--env-file", "--kubeconfig")


def main() -> int:
    """Print proposals for the last word of a command line."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    *words, last = sys.argv[1:] or [""]
    proposals, directive = propose(words, last)
    print("\n".join([*proposals, f":{directive}"]))
    return 0


def propose(words: Sequence[str], last: str) -> tuple[list[str], int]:
    """Return what the last word may become, after the words before it."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    if words and words[-1] in _FILE_OPTIONS:
        return [], _FILES
    command = next((commands[word] for word in words if word in commands), None)
    if command is None:
        return sorted(name for name in commands if name.startswith(last)), _NO_FILES
    if last.startswith("-"):
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        return sorted(option for option in options if option.startswith(last)), _NO_FILES
    takes_jobs = any(parameter.name in ("name", "first", "second") for parameter in command.params)
    return ([name for name in _job_names(words) if name.startswith(last)] if takes_jobs else []), _NO_FILES


def _job_names(words: Sequence[str]) -> list[str]:
    from finetune_cli.cluster import Cluster
    from finetune_cli.kinds import FINE_TUNE_JOB

    kubeconfig = _value(words, "--kubeconfig")
    try:
        cluster = Cluster.open(
            Path(kubeconfig) if kubeconfig else None,
            _value(words, "--context"),
            _value(words, "--namespace") or _value(words, "-n"),
        )
        return sorted(body["metadata"]["name"] for body in cluster.list(FINE_TUNE_JOB))
    except CommandError:
        return []  # a shell that completes has no place for an error


def _value(words: Sequence[str], option: str) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


if __name__ == "__main__":
    sys.exit(main())
