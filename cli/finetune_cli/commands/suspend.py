"""`suspend` and `resume`: a job leaves its GPUs after a checkpoint, and goes on from there."""

from typing import Annotated

import typer

from finetune_cli.cluster import Cluster
from finetune_cli.errors import CommandError, ExitCode
from finetune_cli.jobs import Job, read_job
from finetune_cli.kinds import FINE_TUNE_JOB
from finetune_cli.options import Context, JobName, Kubeconfig, Namespace, Timeout
from finetune_cli.terminal import note
from finetune_cli.waiting import wait_for
from finetune_operator.api.status import Phase

Wait = Annotated[bool, typer.Option("--wait", "-w", help="Wait until it is so.")]


def suspend(
    name: JobName,
    wait: Wait = False,
    timeout: Timeout = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Stop a job after a checkpoint and free its GPUs; resume lets it go on from there."""
    cluster = Cluster.open(kubeconfig, context, namespace)
    _set(cluster, name, True)
    if wait:
        job = wait_for(cluster, name, lambda job: job.status.phase is Phase.SUSPENDED, timeout)
        note(job.explanation)


def resume(
    name: JobName,
    wait: Wait = False,
    timeout: Timeout = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Let a suspended job go on from its last checkpoint."""
    cluster = Cluster.open(kubeconfig, context, namespace)
    _set(cluster, name, False)
    if wait:
        wait_for(cluster, name, _goes_on, timeout)


def _set(cluster: Cluster, name: str, suspended: bool) -> None:
    job = read_job(cluster.get(FINE_TUNE_JOB, name))
    if job.has_ended:
        raise CommandError(f"{name} has ended ({job.phase}); there is nothing to stop or to resume", ExitCode.FAILED)
    if job.suspended is not suspended:
        cluster.patch(FINE_TUNE_JOB, name, {"spec": {"suspend": suspended}})
    done = "suspended" if suspended else "resumed"
    unchanged = " (unchanged)" if job.suspended is suspended else ""
    print(f"finetunejob.finetune.dev/{name} {done}{unchanged}")


def _goes_on(job: Job) -> bool:
    return job.status.phase not in (Phase.SUSPENDED, Phase.SUSPENDING, None)
