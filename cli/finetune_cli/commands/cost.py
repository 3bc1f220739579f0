"""`cost`: what jobs have used of GPUs' time, what of it counted, and what it cost."""

from decimal import Decimal
from typing import Annotated

import typer

from finetune_cli.cluster import Cluster
from finetune_cli.draw.cost import cost_documents, draw_costs
from finetune_cli.jobs import read_job
from finetune_cli.kinds import FINE_TUNE_JOB
from finetune_cli.options import Context, Document, Kubeconfig, Namespace
from finetune_cli.terminal import note, print_document, show


def cost(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One job; all of them when left out.")] = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Jobs of all namespaces.")] = False,
    gpu_hour_price: Annotated[
        float | None, typer.Option("--price", metavar="PRICE", min=0, help="Price of a GPU-hour where none is told.")
    ] = None,
    output: Document = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show GPU-hours by what became of them, and what they cost.

    GPU-hours are counted from when a gang's pods run; waiting for GPUs costs nothing. Money is what the operator
    reckons with its prices; where it has none, --price multiplies.

    Examples:

      kubectl finetune cost

      kubectl finetune cost -A --price 2.5 -o json
    """
    cluster = Cluster.open(kubeconfig, context, namespace)
    bodies = (
        [cluster.get(FINE_TUNE_JOB, name)]
        if name is not None
        else cluster.list(FINE_TUNE_JOB, everywhere=all_namespaces)
    )
    jobs = [read_job(body) for body in bodies]
    price = None if gpu_hour_price is None else Decimal(str(gpu_hour_price))
    if output is not None:
        print_document(cost_documents(jobs, price), output)
    elif jobs:
        show(draw_costs(jobs, price, everywhere=all_namespaces))
    else:
        note("No FineTuneJobs found.")
