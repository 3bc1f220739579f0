"""`retry`: a new job from the recipe of an old one, which goes on from one of its checkpoints.

A spec cannot be changed once it is accepted, and a checkpoint belongs to the job that wrote it; so the old job stays
as it is, and the new one gets a copy, made by the trainer, before it starts. See
docs/design/2026-11-27-command-line.md.
"""

import copy
from pathlib import PurePosixPath
from typing import Annotated, Any

import typer

from finetune_cli.cluster import Body, Cluster
from finetune_cli.commands.watch import follow
from finetune_cli.errands import find_place, run_verb
from finetune_cli.errors import CommandError, ExitCode
from finetune_cli.jobs import Job, read_job
from finetune_cli.kinds import FINE_TUNE_JOB
from finetune_cli.options import Context, JobName, Kubeconfig, Namespace
from finetune_cli.terminal import note
from finetune_operator import names
from finetune_operator.api.status import Phase

_RESTS = (Phase.SUCCEEDED, Phase.FAILED, Phase.SUSPENDED)


def retry(
    name: JobName,
    from_step: Annotated[
        int | None, typer.Option(min=0, help="Checkpoint to go on from; the newest when not set, 0 is the start.")
    ] = None,
    new_name: Annotated[str | None, typer.Option("--name", help="Name of the new job; NAME-retry-1 and so on.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Watch the new job to its end.")] = False,
    image: Annotated[str | None, typer.Option(help="Trainer image that copies the checkpoint.")] = None,
    seconds: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=1, help="Give copying so long.")
    ] = 600.0,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Start a new job with the recipe of one that has ended or is suspended, from one of its checkpoints.

    The old job stays as it is, and so does its checkpoint. Model and data are pinned to the commits that the old job
    used. A job that merely lost a node needs no retry: the operator starts it anew by itself.

    Examples:

      kubectl finetune retry function-calling

      kubectl finetune retry function-calling --from-step 500 --watch
    """
    cluster = Cluster.open(kubeconfig, context, namespace)
    body = cluster.get(FINE_TUNE_JOB, name)
    old = read_job(body)
    if old.status.phase not in _RESTS:
        raise CommandError(f"{name} is {old.phase}: suspend it first, or wait for its end", ExitCode.FAILED)
    newest = old.status.checkpoint.step if old.status.checkpoint is not None else 0
    step = newest if from_step is None else from_step
    taken = {job["metadata"]["name"] for job in cluster.list(FINE_TUNE_JOB)}
    manifest = retried(body, new_name or free_name(name, taken))
    if manifest["metadata"]["name"] in taken:
        raise CommandError(f"{manifest['metadata']['name']} exists already: choose another --name", ExitCode.USAGE)
    place = find_place(cluster, body, image) if step else None
    new = read_job(cluster.create(FINE_TUNE_JOB, manifest))
    if place is not None:
        try:
            arguments = ["--from", str(_directory(old)), "--to", str(_directory(new)), "--step", str(step)]
            note(run_verb(cluster, "adopt", place, old.shared_claim, arguments, seconds)[-1])
        except BaseException:
            cluster.delete(FINE_TUNE_JOB, new.name)
            raise
    cluster.patch(FINE_TUNE_JOB, new.name, {"spec": {"suspend": False}})
    whence = f"from step {step}" if step else "from the start"
    print(f"finetunejob.finetune.dev/{new.name} created ({whence} of {name})")
    if watch:
        raise typer.Exit(follow(cluster, new.name, timeout_seconds=None))


def retried(body: Body, new_name: str) -> dict[str, Any]:
    """Return the manifest of a job with the recipe, the files and the labels of another; it is suspended."""
    old, spec = read_job(body), copy.deepcopy(dict(body["spec"]))
    spec["suspend"] = True
    # What the old job made, the new one finds; so nothing is deleted with the new one either.
    spec["storage"] = {"shared": {"claimName": old.shared_claim}}
    if old.network_claim is not None:
        spec["storage"]["network"] = {"claimName": old.network_claim}
    _pin(spec, old)
    labels = {key: value for key, value in old.labels.items() if key in names.QUEUE_LABELS}
    metadata: dict[str, Any] = {
        "name": new_name,
        "annotations": {names.Annotation.RETRY_OF.value: f"{old.name}/{old.uid}"},
    }
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": metadata | ({"labels": labels} if labels else {}),
        "spec": spec,
    }


def free_name(name: str, taken: set[str]) -> str:
    """Return `NAME-retry-1`, or the first that is free; a long name is cut."""
    number = 1
    while True:
        suffix = f"-retry-{number}"
        candidate = name[: names.MAX_LABEL_CHARACTERS - len(suffix)].rstrip("-") + suffix
        if candidate not in taken:
            return candidate
        number += 1


def _pin(spec: dict[str, Any], old: Job) -> None:
    """Name the commits of model and data: a checkpoint fits no others, and a branch may have moved on."""
    plan = old.status.plan
    if plan is None:
        return
    model = spec["model"].get("huggingFace")
    commit = plan.model.partition("@")[2]
    if model is not None and commit:
        model["revision"] = commit
    for dataset, report in zip(spec["datasets"], plan.datasets, strict=False):
        if "huggingFace" in dataset and report.revision and report.name == dataset["huggingFace"]["repository"]:
            dataset["huggingFace"]["revision"] = report.revision


def _directory(job: Job) -> PurePosixPath:
    return PurePosixPath("jobs") / job.namespace / job.name / job.uid
