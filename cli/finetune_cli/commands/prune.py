"""`prune`: frees the shared filesystem of models and data sets in its cache that no job names.

What the cache looks like and how it is locked, the trainer knows; here is asked which jobs there are.
"""

from datetime import UTC, datetime
from typing import Annotated

import typer

from finetune_cli.cluster import Body, Cluster
from finetune_cli.draw.prune import draw_entries, read_entries
from finetune_cli.errands import find_place, run_verb
from finetune_cli.errors import CommandError, ExitCode
from finetune_cli.jobs import read_job
from finetune_cli.kinds import FINE_TUNE_JOB
from finetune_cli.options import Context, Document, Kubeconfig, Namespace
from finetune_cli.terminal import note, print_document, show


def prune(
    claim: Annotated[
        str | None, typer.Option(help="Claim on the shared filesystem; that of the jobs when they have one in common.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove; without it they are only listed.")] = False,
    image: Annotated[str | None, typer.Option(help="Trainer image to do it with.")] = None,
    seconds: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=1, help="Give it so long.")] = 600.0,
    output: Document = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """List models and data in the cache of a shared filesystem that no FineTuneJob names, and with --yes remove them.

    Kept is what a job of this namespace names, what a job of another namespace has prepared on the same filesystem,
    what is being made, and everything that is not of the cache. Checkpoints, adapters and reports are never touched.

    Examples:

      kubectl finetune prune

      kubectl finetune prune --yes
    """
    cluster = Cluster.open(kubeconfig, context, namespace)
    listed_at = datetime.now(UTC).replace(microsecond=0)
    bodies = cluster.list(FINE_TUNE_JOB)
    claim = claim or _claim_of(bodies)
    place = find_place(cluster, None, image)
    arguments = [*prune_arguments(bodies, cluster.namespace, listed_at), *(["--remove"] if yes else [])]
    entries = read_entries(run_verb(cluster, "prune", place, claim, arguments, seconds))
    if output is not None:
        print_document([entry.document() for entry in entries], output)
        return
    show(draw_entries(entries, removed=yes))
    if not yes and any(entry.is_unused for entry in entries):
        note("Nothing was removed. --yes removes what is unused.")


def prune_arguments(bodies: list[Body], namespace: str, listed_at: datetime) -> list[str]:
    """Return what the trainer has to know of the jobs that there are."""
    arguments = ["--namespace", namespace, "--listed-at", listed_at.isoformat()]
    for body in bodies:
        job = read_job(body)
        arguments += ["--living", job.uid]
        if job.status.plan is not None:
            arguments += ["--keep", job.status.plan.model_path, "--keep", job.status.plan.data_path]
        sources = [body["spec"]["model"], *body["spec"]["datasets"]]
        for source in sources:
            if "huggingFace" in source:
                arguments += ["--keep-repository", source["huggingFace"]["repository"]]
            else:
                arguments += ["--keep", source["path"]]
    return list(arguments)


def _claim_of(bodies: list[Body]) -> str:
    claims = sorted({read_job(body).shared_claim for body in bodies})
    if len(claims) == 1:
        return claims[0]
    which = f"the jobs here use {', '.join(claims)}" if claims else "there is no job here that names one"
    raise CommandError(f"{which}: say which with --claim", ExitCode.USAGE)
