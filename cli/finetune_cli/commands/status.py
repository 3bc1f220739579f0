"""`status`: how the jobs of a namespace are, or how one is."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from finetune_cli.cluster import Cluster
from finetune_cli.draw.status import draw_job, draw_jobs
from finetune_cli.jobs import read_job
from finetune_cli.kinds import FINE_TUNE_JOB
from finetune_cli.options import Context, Kubeconfig, Namespace, Output
from finetune_cli.terminal import note, print_objects, show


def status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One job; all of them when left out.")] = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Jobs of all namespaces.")] = False,
    output: Output = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show how the jobs are, or all that is known of one.

    Examples:

      kubectl finetune status

      kubectl finetune status function-calling -o yaml
    """
    cluster = Cluster.open(kubeconfig, context, namespace)
    if name is not None:
        bodies = [cluster.get(FINE_TUNE_JOB, name)]
    else:
        bodies = cluster.list(FINE_TUNE_JOB, everywhere=all_namespaces)
    if output is not None:
        print_objects(bodies, output, one=name is not None)
        return
    jobs, now = [read_job(body) for body in bodies], datetime.now(UTC)
    if name is not None:
        show(draw_job(jobs[0], now))
    elif jobs:
        show(draw_jobs(jobs, now, everywhere=all_namespaces))
    else:
        note("No FineTuneJobs found" + ("." if all_namespaces else f" in namespace {cluster.namespace}."))
