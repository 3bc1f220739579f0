"""`compare`: two jobs side by side, where their recipes differ and what came of it."""

from typing import Annotated

import typer

from finetune_cli.cluster import Cluster
from finetune_cli.draw.compare import compare_documents, draw_comparison, make_comparison
from finetune_cli.jobs import read_job, typed
from finetune_cli.kinds import FINE_TUNE_JOB
from finetune_cli.options import Context, Document, Kubeconfig, Namespace
from finetune_cli.terminal import print_document, show


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Name of a FineTuneJob.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="Name of another.", show_default=False)],
    all_fields: Annotated[bool, typer.Option("--all", help="Show fields of the recipe that are equal, too.")] = False,
    output: Document = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show two jobs side by side: the fields in which their recipes differ, losses, speed, cost, evaluation.

    Defaults count: a field that one job does not set is compared by its default.
    """
    cluster = Cluster.open(kubeconfig, context, namespace)
    bodies = [cluster.get(FINE_TUNE_JOB, name) for name in (first, second)]
    jobs = [read_job(body) for body in bodies]
    specs = [typed(body).spec.model_dump(mode="json", by_alias=True, exclude_none=True) for body in bodies]
    comparison = make_comparison((jobs[0], jobs[1]), (specs[0], specs[1]), all_fields=all_fields)
    if output is not None:
        print_document(compare_documents(comparison), output)
    else:
        show(draw_comparison(comparison))
