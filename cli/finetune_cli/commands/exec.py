"""`exec`: a command on every node of a job at once, what came back in one table."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import typer

from finetune_cli.cluster import Cluster, Output
from finetune_cli.draw.exec import Answer, draw_answers, draw_gpus
from finetune_cli.errors import CommandError, ExitCode, NotThere
from finetune_cli.jobs import read_job
from finetune_cli.kinds import FINE_TUNE_JOB, POD
from finetune_cli.options import Context, Document, JobName, Kubeconfig, Namespace
from finetune_cli.pods import PodView, pods_that_tell, see_pods, selector
from finetune_cli.terminal import print_document, show

# One line a GPU, in the order in which `draw_gpus` reads it.
GPU_QUERY = (
    "nvidia-smi",
    "--query-gpu=index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw",
    "--format=csv,noheader,nounits",
)
_MAX_AT_ONCE = 16


def exec_(
    name: JobName,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND...]", help="The command; nvidia-smi when left out.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Only the pod in which this global rank runs.")] = None,
    seconds: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0, help="Give a pod so long to answer.")
    ] = 30.0,
    output: Document = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Run a command on every node of a running job; without one, ask nvidia-smi for every GPU in one table.

    It ends with 1 when the command failed on any node. Your role needs `create` on pods/exec.

    Examples:

      kubectl finetune exec function-calling

      kubectl finetune exec function-calling -- df -h /mnt/shared
    """
    cluster = Cluster.open(kubeconfig, context, namespace)
    pods = [pod for pod in _pods(cluster, name) if rank is None or rank in pod.ranks]
    if not pods:
        raise NotThere(f"no pod of {name} runs" + ("" if rank is None else f" rank {rank}"))
    with ThreadPoolExecutor(_MAX_AT_ONCE) as together:
        answers = list(together.map(lambda pod: _ask(cluster, pod, command or GPU_QUERY, seconds), pods))
    if output is not None:
        print_document([answer.document() for answer in answers], output)
    elif command:
        show(draw_answers(answers))
    else:
        show(draw_gpus(answers))
    if any(answer.exit_code != 0 for answer in answers):
        raise typer.Exit(ExitCode.FAILED)


def _pods(cluster: Cluster, name: str) -> list[PodView]:
    job = read_job(cluster.get(FINE_TUNE_JOB, name))
    pods = see_pods(job, cluster.list(POD, labels=selector(job)))
    return [pod for pod in pods_that_tell(pods) if pod.running]


def _ask(cluster: Cluster, pod: PodView, command: Sequence[str], seconds: float) -> Answer:
    try:
        output: Output = cluster.run(pod.name, command, pod.container, seconds)
    except CommandError as error:
        if error.code is ExitCode.FORBIDDEN:
            raise
        return Answer(pod, None, error.message)
    text = output.stdout.decode(errors="replace").rstrip("\n")
    return Answer(pod, output.exit_code, text or output.stderr.strip())
