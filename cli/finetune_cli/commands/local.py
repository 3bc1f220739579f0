"""`local`: the same YAML on this machine, without a cluster: prepare, train, evaluate."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from finetune_cli.errors import CommandError, ExitCode
from finetune_cli.job_file import STANDARD_INPUT, read_job_file
from finetune_cli.options import File
from finetune_cli.secrets import read_tokens
from finetune_cli.terminal import note
from finetune_operator.names import Stage

_MISSING = "the trainer is not installed here: pip install '.[trainer]' in a checkout of finetune-operator"


def local(
    filename: File,
    shared: Annotated[
        Path, typer.Option(help="Directory that takes the place of the shared filesystem; it is made.")
    ] = Path("shared"),
    env_file: Annotated[
        Path | None, typer.Option(help="File with HF_TOKEN=... and WANDB_API_KEY=..., for this run.")
    ] = None,
    stage: Annotated[list[Stage] | None, typer.Option(help="Only this stage; may be given several times.")] = None,
) -> None:
    """Run a job on this machine: prepare, train and evaluate, with the trainer that the pods run.

    The fields that only Kubernetes reads are passed over. It goes on from the last checkpoint in --shared.

    Examples:

      kubectl finetune local -f job.yaml --shared ./shared
    """
    _, job = read_job_file(filename)
    if filename == STANDARD_INPUT:
        raise CommandError("local needs a file: each stage reads it", ExitCode.USAGE)
    if find_spec("torch") is None:
        raise CommandError(_MISSING)
    tokens = {} if env_file is None else read_tokens(env_file)
    shared.mkdir(parents=True, exist_ok=True)
    wanted = stage or [step for step in Stage if step is not Stage.EVALUATE or job.spec.evaluation.enabled]
    for step in Stage:
        if step in wanted:
            note(f"== {step.value}")
            _run(step, filename, shared, tokens)
    print(shared / "jobs" / job.metadata.namespace / job.metadata.name / job.metadata.uid)


def _run(stage: Stage, file: Path, shared: Path, tokens: dict[str, str]) -> None:
    command = [sys.executable, "-m", "finetune_trainer", stage.value, str(file), "--shared", str(shared)]
    ended = subprocess.run(command, env=os.environ | tokens, check=False)
    if ended.returncode != 0:
        raise CommandError(f"{stage.value} ended with {ended.returncode}; its own words are above")
