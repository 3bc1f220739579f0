"""`doctor`: why does a job not run? Looks at everything that it depends on, as far as this user may."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import typer

from finetune_cli.capacity import Capacity, need_of, weigh
from finetune_cli.cluster import Body, Cluster
from finetune_cli.diagnose import diagnose, has_problem
from finetune_cli.draw.doctor import draw_findings, finding_documents
from finetune_cli.errors import CommandError, ExitCode, NotPermitted, NotThere
from finetune_cli.findings import Seen, Unseen
from finetune_cli.hub import PUBLIC_HUB, Hub
from finetune_cli.hub_access import Access
from finetune_cli.jobs import Job, read_job, typed
from finetune_cli.kinds import CLAIM, DEPLOYMENT, EVENT, FINE_TUNE_JOB, NODE, POD, QUOTA, STORAGE_CLASS
from finetune_cli.options import Context, Document, JobName, Kubeconfig, Namespace
from finetune_cli.pods import PodView, pods_that_tell, see_pods, selector
from finetune_cli.secrets import keys_of
from finetune_cli.terminal import print_document, show
from finetune_operator import names
from finetune_operator.api.job import FineTuneJob
from finetune_operator.errors import InvalidJob
from finetune_operator.plan import Plan, make_plan
from finetune_operator.settings import Settings
from finetune_trainer.contract.environment import HUGGING_FACE_ENDPOINT

Found = TypeVar("Found")


def doctor(
    name: JobName,
    ask_hub: Annotated[
        bool, typer.Option("--hub/--no-hub", help="Ask the Hub whether model and data are open.")
    ] = True,
    output: Document = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Find out why a job does not run: operator, tokens, Hub, claims, quota, nodes, taints, images, pods.

    Each finding comes with the command that mends it or shows more. What your role may not look at is told as such.
    It ends with 1 when there is something to mend.
    """
    cluster = Cluster.open(kubeconfig, context, namespace)
    if not cluster.serves(FINE_TUNE_JOB):
        raise NotThere("the cluster has no FineTuneJobs: install the operator (docs/operator/install.md)")
    findings = diagnose(look(cluster, cluster.get(FINE_TUNE_JOB, name), ask_hub=ask_hub), datetime.now(UTC))
    if output is not None:
        print_document(finding_documents(findings), output)
    else:
        show(draw_findings(findings))
    if has_problem(findings):
        raise typer.Exit(ExitCode.FAILED)


def look(cluster: Cluster, body: Body, *, ask_hub: bool) -> Seen:
    """Look at everything that a job depends on."""
    job, known = read_job(body), typed(body)
    claims = _may(lambda: cluster.list(CLAIM), "claims")
    plan = _plan(known, [] if isinstance(claims, Unseen) else claims)
    secret = known.spec.secret_name
    return Seen(
        body=body,
        job=job,
        typed=known,
        plan=plan,
        operators=_may(
            lambda: cluster.list(DEPLOYMENT, everywhere=True, labels=f"{names.Label.APP_NAME}={names.OPERATOR}"),
            "deployments of all namespaces",
        ),
        pods=_may(lambda: _pods(cluster, job), "pods"),
        warnings=_may(lambda: cluster.list(EVENT, fields="type=Warning"), "events"),
        claims=claims,
        storage_classes=_may(lambda: cluster.list(STORAGE_CLASS), "storage classes"),
        secret_keys=None if secret is None else _may(lambda: keys_of(cluster, str(secret)), "secrets"),
        quotas=_may(lambda: cluster.list(QUOTA), "quotas"),
        capacity=_may(lambda: _capacity(cluster, known), "nodes"),
        hub=_hub(known) if ask_hub else {},
    )


def _may(look_at: Callable[[], Found], what: str) -> Found | Unseen:
    try:
        return look_at()
    except NotPermitted:
        return Unseen(f"your role may not look at {what}")
    except CommandError as error:
        if error.code is ExitCode.UNREACHABLE:
            raise
        return Unseen(f"{what}: {error.message}")


def _plan(job: FineTuneJob, claims: list[Body]) -> Plan | None:
    modes = {claim["metadata"]["name"]: claim["spec"].get("accessModes") for claim in claims}
    try:
        return make_plan(job, Settings(trainer_image="unknown"), modes)
    except InvalidJob:
        return None


def _pods(cluster: Cluster, job: Job) -> list[PodView]:
    return list(pods_that_tell(see_pods(job, cluster.list(POD, labels=selector(job)))))


def _capacity(cluster: Cluster, job: FineTuneJob) -> Capacity:
    nodes = cluster.list(NODE)
    try:
        pods = cluster.list(POD, everywhere=True, fields="status.phase!=Succeeded,status.phase!=Failed")
    except NotPermitted:
        pods = None
    resource = Settings.gpu_resource_name
    return weigh(need_of(job.spec.compute, resource), job.spec.compute.nodes, nodes, pods, resource)


def _hub(job: FineTuneJob) -> dict[str, Access]:
    """Ask without a token, which stays in its Secret: whether it is needed is what is to be known."""
    hub = Hub(os.environ.get(HUGGING_FACE_ENDPOINT, PUBLIC_HUB).rstrip("/"))
    found = {}
    if job.spec.model.hugging_face is not None:
        repository = job.spec.model.hugging_face.repository
        found[repository] = hub.access(repository, "models")
    for dataset in job.spec.datasets:
        if dataset.hugging_face is not None:
            found[dataset.hugging_face.repository] = hub.access(dataset.hugging_face.repository, "datasets")
    return found
