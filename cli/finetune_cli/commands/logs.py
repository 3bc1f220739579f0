"""`logs`: what the pods of a job write, all ranks together, each line with its rank."""

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from finetune_cli.cluster import Cluster
from finetune_cli.draw.logs import log_line
from finetune_cli.errors import CommandError, NotThere
from finetune_cli.jobs import Job, read_job
from finetune_cli.kinds import FINE_TUNE_JOB, POD
from finetune_cli.options import Context, JobName, Kubeconfig, Namespace
from finetune_cli.pods import PodView, pods_that_tell, see_pods, selector
from finetune_cli.terminal import note, output_console
from finetune_operator.names import Stage

_ASK_SECONDS = 1.0


@dataclass(frozen=True)
class Wanted:
    """What a person wants to read."""

    rank: int | None
    stage: Stage | None
    tail: int | None
    prefix: bool

    def of(self, pods: Sequence[PodView]) -> list[PodView]:
        """Return the pods that it is in: those of one stage, and of the newest attempt."""
        stage = Stage.TRAIN if self.rank is not None else self.stage
        chosen = pods_that_tell([pod for pod in pods if stage is None or pod.stage is stage])
        return [pod for pod in chosen if self.rank is None or self.rank in pod.ranks]


def logs(
    name: JobName,
    rank: Annotated[int | None, typer.Option(min=0, help="Only the pod in which this global rank runs.")] = None,
    stage: Annotated[Stage | None, typer.Option(help="Only this stage; the one under way when not set.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, help="Only the last lines of each pod.")] = None,
    prefix: Annotated[bool, typer.Option(help="Write before each line which ranks it comes from.")] = True,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print what the pods of a job write.

    The processes of a pod write one log. With --follow it goes on with the next stage and the next attempt until the
    job has ended.

    Examples:

      kubectl finetune logs function-calling -f

      kubectl finetune logs function-calling --rank 0 --tail 20
    """
    cluster, wanted = Cluster.open(kubeconfig, context, namespace), Wanted(rank, stage, tail, prefix)
    job, pods = _look(cluster, name, wanted)
    if rank is not None and rank >= job.nodes * job.processes_per_node:
        raise NotThere(f"{name} has no rank {rank}: its ranks are 0 to {job.nodes * job.processes_per_node - 1}")
    if follow:
        _follow(cluster, name, wanted)
        return
    started = [pod for pod in pods if pod.started]
    if not started:
        raise NotThere(_why_nothing(job))
    console, width = output_console(), _width(started)
    for position, pod in enumerate(started):
        for line in cluster.log_lines(pod.name, tail=tail):
            console.print(log_line(pod.prefix if prefix else "", width, position, line))


def _look(cluster: Cluster, name: str, wanted: Wanted) -> tuple[Job, list[PodView]]:
    job = read_job(cluster.get(FINE_TUNE_JOB, name))
    return job, wanted.of(see_pods(job, cluster.list(POD, labels=selector(job))))


class Follower:
    """Reads every pod of a job as it writes, each in a thread of its own, and prints line by line."""

    def __init__(self, cluster: Cluster, wanted: Wanted) -> None:
        self._cluster = cluster
        self._wanted = wanted
        self._console = output_console()
        self._lines: queue.SimpleQueue[tuple[str, int, str]] = queue.SimpleQueue()
        self._readers: dict[str, threading.Thread] = {}
        self._width = 0

    @property
    def has_begun(self) -> bool:
        """Whether any pod was read yet."""
        return bool(self._readers)

    @property
    def is_reading(self) -> bool:
        """Whether more may come."""
        return any(reader.is_alive() for reader in self._readers.values())

    def attend(self, pods: Sequence[PodView]) -> None:
        """Begin to read the pods that have started, and go on with those whose connection broke."""
        self._width = max(self._width, _width(pods))
        for position, pod in enumerate(pods):
            known = self._readers.get(pod.name)
            if pod.started and (known is None or (pod.running and not known.is_alive())):
                tail = self._wanted.tail if known is None else 0
                reader = threading.Thread(target=self._read, args=(pod, position, tail), daemon=True)
                self._readers[pod.name] = reader
                reader.start()

    def print_lines(self, seconds: float) -> None:
        """Print what comes within a time, and what has come before."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 or not self._lines.empty():
            try:
                prefix, position, line = self._lines.get(timeout=max(left, 0))
            except queue.Empty:
                return
            self._console.print(log_line(prefix if self._wanted.prefix else "", self._width, position, line))

    def _read(self, pod: PodView, position: int, tail: int | None) -> None:
        try:
            for line in self._cluster.log_lines(pod.name, follow=True, tail=tail):
                self._lines.put((pod.prefix, position, line))
        except CommandError as error:
            self._lines.put((pod.prefix, position, f"(no more of this log: {error.message})"))


def _follow(cluster: Cluster, name: str, wanted: Wanted) -> None:
    """Print lines as they come, from every pod that starts, until the job has ended and all is read."""
    follower, told = Follower(cluster, wanted), False
    while True:
        job, pods = _look(cluster, name, wanted)
        follower.attend(pods)
        if not follower.has_begun and not told and not job.has_ended:
            told = True
            note(f"Waiting for a pod of {name}: {job.explanation or job.phase}")
        done = job.has_ended and not follower.is_reading
        follower.print_lines(0 if done else _ASK_SECONDS)
        if done:
            return


def _width(pods: Sequence[PodView]) -> int:
    return max((len(pod.prefix) for pod in pods), default=0)


def _why_nothing(job: Job) -> str:
    words = job.explanation or f"it is {job.phase}"
    return f"{job.name} has no log to read now: no pod of that stage has started, or they are gone. {words}"
