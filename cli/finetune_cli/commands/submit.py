"""`submit`: checks a file, puts the tokens into the job's Secret, and hands the job to the cluster."""

from pathlib import Path
from typing import Annotated

import typer

from finetune_cli.cluster import Body, Cluster
from finetune_cli.commands.watch import follow
from finetune_cli.errors import CommandError, ExitCode, NotThere
from finetune_cli.job_file import namespace_of, read_job_file
from finetune_cli.kinds import FINE_TUNE_JOB
from finetune_cli.options import Context, File, Kubeconfig, Namespace, Output, Timeout
from finetune_cli.secrets import put_tokens, read_tokens
from finetune_cli.terminal import note, print_objects
from finetune_operator import names


def submit(
    filename: File,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Watch the job to its end.")] = False,
    env_file: Annotated[
        Path | None,
        typer.Option(help="File with HF_TOKEN=... and WANDB_API_KEY=...; they go into the Secret of spec.secretName."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Let the API server check everything and keep nothing.")
    ] = False,
    output: Output = None,
    timeout: Timeout = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Hand a job to the cluster, with its tokens.

    The file is checked here first, so that every mistake is named with its field. Without --env-file no Secret is
    touched.

    Examples:

      kubectl finetune submit -f job.yaml --env-file .env --watch
    """
    manifest, job = read_job_file(filename)
    tokens = None if env_file is None else read_tokens(env_file)
    if tokens is not None and job.spec.secret_name is None:
        raise CommandError("--env-file needs spec.secretName in the file: the Secret to put them into", ExitCode.USAGE)
    cluster = Cluster.open(kubeconfig, context, namespace_of(manifest, namespace))
    if not cluster.serves(FINE_TUNE_JOB):
        raise NotThere("the cluster has no FineTuneJobs: install the operator (docs/operator/install.md)")
    if tokens is not None and not dry_run:
        note(put_tokens(cluster, str(job.spec.secret_name), tokens))
    before = _existing(cluster, job.metadata.name)
    after = cluster.apply(FINE_TUNE_JOB, manifest, dry_run=dry_run)
    if output is not None:
        print_objects([after], output, one=True)
    else:
        print(f"{names.SINGULAR}.{names.GROUP}/{job.metadata.name} {_what_happened(before, after)}{_mode(dry_run)}")
    if watch and not dry_run:
        raise typer.Exit(follow(cluster, job.metadata.name, timeout_seconds=timeout))


def _existing(cluster: Cluster, name: str) -> Body | None:
    try:
        return cluster.get(FINE_TUNE_JOB, name)
    except NotThere:
        return None


def _what_happened(before: Body | None, after: Body) -> str:
    if before is None:
        return "created"
    unchanged = before["metadata"].get("generation") == after["metadata"].get("generation")
    return "unchanged" if unchanged else "configured"


def _mode(dry_run: bool) -> str:
    return " (server dry run)" if dry_run else ""
