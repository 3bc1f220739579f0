"""`plan`: what a run would take, before anything is held, with a cluster or without one."""

import os
from pathlib import Path
from typing import Annotated

import typer

from finetune_cli.capacity import Capacity, need_of, weigh
from finetune_cli.cluster import Cluster
from finetune_cli.draw.plan import draw_capacity, draw_forecast, draw_problem
from finetune_cli.errors import CommandError, ExitCode, NotPermitted
from finetune_cli.forecast import Data, Forecast, forecast, is_same_data, measured_data, most_data, stated_data
from finetune_cli.gpus import NAMES, Gpu, gpu_named
from finetune_cli.hub import PUBLIC_HUB, Hub, shape_in
from finetune_cli.job_file import namespace_of, read_job_file
from finetune_cli.jobs import typed
from finetune_cli.kinds import CLAIM, FINE_TUNE_JOB, NODE, POD
from finetune_cli.options import Context, Document, File, Kubeconfig, Namespace
from finetune_cli.terminal import note, print_document, show
from finetune_operator.api.job import FineTuneJob
from finetune_operator.errors import InvalidJob
from finetune_operator.plan import ClaimAccessModes, Plan, make_plan
from finetune_operator.settings import Settings
from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.environment import HUGGING_FACE_ENDPOINT, HUGGING_FACE_TOKEN
from finetune_trainer.contract.spec import Device

_IMAGE_OF_THE_OPERATOR = "(the operator's own)"


def plan(
    filename: File,
    gpu: Annotated[
        str | None,
        typer.Option(help=f"GPU to reckon with, one of {', '.join(NAMES)}; that of the cluster's nodes when not set."),
    ] = None,
    gpu_hour_price: Annotated[
        float | None, typer.Option("--price", metavar="PRICE", min=0, help="Price of one GPU for an hour.")
    ] = None,
    sequences: Annotated[
        int | None, typer.Option(min=1, help="Packed sequences of an epoch, where you know them.")
    ] = None,
    model_config: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="config.json of the model, where the Hub cannot be asked."),
    ] = None,
    no_cluster: Annotated[
        bool, typer.Option("--no-cluster", help="Ask no cluster; the file and the Hub suffice.")
    ] = False,
    gpu_resource: Annotated[
        str, typer.Option(help="Extended resource that GPUs are.", hidden=True)
    ] = Settings.gpu_resource_name,
    output: Document = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Tell what a run would take: steps, tokens, memory of a GPU, time, cost, and which nodes could take it.

    Nothing is made and no GPU is touched. The model's shape is read from its config.json on the Hub (HF_ENDPOINT and
    HF_TOKEN are used where set). Ends with 1 when the job does not fit the GPUs' memory, or no node could ever take it.

    Examples:

      kubectl finetune plan -f job.yaml --price 2.5

      kubectl finetune plan -f job.yaml --no-cluster --gpu H100
    """
    manifest, job = read_job_file(filename)
    cluster = None if no_cluster else _cluster(kubeconfig, context, namespace_of(manifest, namespace))
    if cluster is not None:
        job = job.model_copy(update={"metadata": job.metadata.model_copy(update={"namespace": cluster.namespace})})
    operator_plan = _operator_plan(job, _access_modes(cluster))
    capacity = None if cluster is None else _capacity(cluster, job, gpu_resource)
    chosen = _gpu(gpu) if gpu is not None else capacity.gpu if capacity is not None else None
    shape, remarks = _shape(job, model_config)
    if job.spec.compute.device is Device.GPU and chosen is None:
        remarks = (*remarks, "No GPU is known: name one with --gpu for memory, time and cost.")
    data = _data(cluster, job, sequences)
    result = forecast(job, data, shape, chosen, gpu_hour_price, remarks)
    if output is not None:
        print_document(_document(operator_plan, result, capacity), output)
    else:
        _show(operator_plan, result, capacity)
    if result.will_not_fit is not None or (capacity is not None and not capacity.could_ever):
        raise typer.Exit(ExitCode.FAILED)


def _cluster(kubeconfig: Path | None, context: str | None, namespace: str | None) -> Cluster | None:
    """Return the cluster if there is one that answers: a plan needs none."""
    try:
        cluster = Cluster.open(kubeconfig, context, namespace)
        cluster.serves(FINE_TUNE_JOB)
    except CommandError as error:
        if kubeconfig is not None or context is not None:
            raise
        note(f"Planned without a cluster: {error.message}")
        return None
    return cluster


def _operator_plan(job: FineTuneJob, access_modes: ClaimAccessModes) -> Plan:
    try:
        return make_plan(job, Settings(trainer_image=_IMAGE_OF_THE_OPERATOR), access_modes)
    except InvalidJob as error:
        raise CommandError("".join(f"\n  {problem}" for problem in error.problems), ExitCode.FAILED) from error


def _access_modes(cluster: Cluster | None) -> ClaimAccessModes:
    if cluster is None:
        return {}
    try:
        claims = cluster.list(CLAIM)
    except CommandError as error:
        note(f"Claims were not looked at: {error.message}")
        return {}
    return {claim["metadata"]["name"]: claim["spec"].get("accessModes") for claim in claims}


def _capacity(cluster: Cluster, job: FineTuneJob, gpu_resource: str) -> Capacity | None:
    try:
        nodes = cluster.list(NODE)
    except NotPermitted:
        note("Nodes were not looked at: your role may not list them (`view` and `edit` do not have that).")
        return None
    try:
        pods = cluster.list(POD, everywhere=True, fields="status.phase!=Succeeded,status.phase!=Failed")
    except NotPermitted:
        note("What other namespaces use is not known: your role may not list their pods.")
        pods = None
    return weigh(need_of(job.spec.compute, gpu_resource), job.spec.compute.nodes, nodes, pods, gpu_resource)


def _gpu(name: str) -> Gpu:
    found = gpu_named(name)
    if found is None:
        raise CommandError(f"--gpu {name}: is not known; known are {', '.join(NAMES)}", ExitCode.USAGE)
    return found


def _shape(job: FineTuneJob, config: Path | None) -> tuple[ModelShape | None, tuple[str, ...]]:
    """Return the shape of the base model, or why it could not be had."""
    if config is not None:
        return shape_in(config.read_text(encoding="utf-8")), ()
    source = job.spec.model.hugging_face
    if source is None:
        why = "The model lies on the shared filesystem: name its config.json with --model-config for memory and time."
        return None, (why,)
    hub = Hub(os.environ.get(HUGGING_FACE_ENDPOINT, PUBLIC_HUB).rstrip("/"), os.environ.get(HUGGING_FACE_TOKEN))
    try:
        return hub.shape_of(source), ()
    except CommandError as error:
        return None, (f"Memory and time are not known: {error.message}. --model-config reads a config.json instead.",)


def _data(cluster: Cluster | None, job: FineTuneJob, sequences: int | None) -> Data:
    """Return what is known of the data: what a person says, what another job found, or the most that it can be."""
    if sequences is not None:
        return stated_data(job, sequences)
    wanted = job.spec.model_dump(mode="json", by_alias=True)
    for body in [] if cluster is None else _jobs(cluster):
        try:
            other = typed(body)
        except CommandError:
            continue  # of another version
        if other.status.plan is not None and is_same_data(wanted, other.spec.model_dump(mode="json", by_alias=True)):
            return measured_data(other.status.plan, other.metadata.name)
    return most_data(job)


def _jobs(cluster: Cluster) -> list[dict[str, object]]:
    try:
        return cluster.list(FINE_TUNE_JOB)
    except CommandError as error:
        note(f"Other jobs were not looked at: {error.message}")
        return []


def _document(operator_plan: Plan, result: Forecast, capacity: Capacity | None) -> dict[str, object]:
    document: dict[str, object] = {
        "name": operator_plan.name,
        "namespace": operator_plan.namespace,
        "model": operator_plan.model,
        **result.document(),
        "reasons": list(operator_plan.reasons),
    }
    if capacity is not None:
        document["cluster"] = {
            "podsWanted": capacity.pods_wanted,
            "couldEver": capacity.could_ever,
            "fitsNow": capacity.fits_now,
            "nodes": [
                {
                    "name": node.name,
                    "gpus": node.gpus,
                    "freeGpus": node.free_gpus,
                    "podsEver": node.pods_ever,
                    "podsNow": node.pods_now,
                    "never": node.never,
                    "notNow": node.not_now,
                }
                for node in capacity.nodes
            ],
        }
    return document


def _show(operator_plan: Plan, result: Forecast, capacity: Capacity | None) -> None:
    show(draw_forecast(operator_plan, result))
    if capacity is not None:
        on_gpus = operator_plan.gpus_per_node > 0
        show("", draw_capacity(capacity, operator_plan.gpus_per_node, on_gpus=on_gpus))
    if result.will_not_fit is not None:
        show("", draw_problem(result))
