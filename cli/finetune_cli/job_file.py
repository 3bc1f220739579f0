"""Reads a FineTuneJob from a file, and names everything that is wrong with it before a cluster is asked."""

import sys
from pathlib import Path
from typing import Any

import yaml

from finetune_cli.errors import CommandError, ExitCode
from finetune_operator.api.job import FineTuneJob
from finetune_operator.errors import InvalidJob

STANDARD_INPUT = Path("-")


def read_job_file(path: Path) -> tuple[dict[str, Any], FineTuneJob]:
    """Return the manifest in a file, and the job that it stands for.

    Raises:
        CommandError: USAGE, with every problem and its field.
    """
    try:
        text = sys.stdin.read() if path == STANDARD_INPUT else path.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}", ExitCode.USAGE) from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: is no UTF-8 text", ExitCode.USAGE) from error
    return parse_job_text(text, str(path))


def parse_job_text(text: str, where: str) -> tuple[dict[str, Any], FineTuneJob]:
    """Return the manifest in a text, and the job that it stands for.

    Raises:
        CommandError: USAGE, with every problem and its field.
    """
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise CommandError(f"{where}: is not YAML: {error}", ExitCode.USAGE) from error
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise CommandError(f"{where}: has {len(documents)} documents; one FineTuneJob is expected", ExitCode.USAGE)
    manifest = documents[0]
    if not isinstance(manifest.get("metadata"), dict):
        raise CommandError(f"{where}: is no FineTuneJob: metadata is missing", ExitCode.USAGE)
    try:
        return manifest, FineTuneJob.parse(manifest)
    except InvalidJob as error:
        problems = "".join(f"\n  {problem}" for problem in error.problems)
        raise CommandError(f"{where} has problems:{problems}", ExitCode.USAGE) from error


def namespace_of(manifest: dict[str, Any], asked: str | None) -> str | None:
    """Return the namespace of a manifest, or the one that was asked for.

    Raises:
        CommandError: USAGE, they differ; kubectl refuses that, too.
    """
    own = manifest["metadata"].get("namespace")
    if own and asked and own != asked:
        raise CommandError(f"the file says namespace {own} and the command line {asked}: leave one out", ExitCode.USAGE)
    return asked or own
