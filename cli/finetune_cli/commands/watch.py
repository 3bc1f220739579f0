"""`watch`: a job before one's eyes until it has ended, and its outcome as the exit code."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import typer
from rich.console import Console
from rich.live import Live

from finetune_cli.cluster import Cluster
from finetune_cli.draw.watch import Screen, describe_outcome, describe_progress, draw_watch
from finetune_cli.errors import CommandError, ExitCode
from finetune_cli.jobs import Job, read_job
from finetune_cli.kinds import EVENT, FINE_TUNE_JOB, POD
from finetune_cli.options import Context, JobName, Kubeconfig, Namespace, Timeout
from finetune_cli.pods import PodView, newest_gang, pods_that_tell, see_pods, selector
from finetune_cli.readings import EventView, NodeReading, losses_in_log, read_series, see_event, with_loss
from finetune_cli.terminal import note, output_console
from finetune_operator.api.status import Phase
from finetune_trainer.contract import series

# How often the cluster is asked, and how often the screen is drawn anew: its clocks go on in between.
_ASK_SECONDS = 2.0
_DRAW_SECONDS = 0.5
_READ_SECONDS = 5.0
_SAME_NEWS_SECONDS = 20.0
_LOG_LINES = 5000
_MAX_READERS = 8


def watch(
    name: JobName,
    timeout: Timeout = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Watch a job to its end: phase, steps, loss, GPUs, time left, Events.

    On a terminal it draws a screen; elsewhere it prints a line for each piece of news. It ends with 0 when the job has
    succeeded and with 1 when it has failed; Ctrl-C leaves the job alone.
    """
    raise typer.Exit(follow(Cluster.open(kubeconfig, context, namespace), name, timeout_seconds=timeout))


def follow(cluster: Cluster, name: str, *, timeout_seconds: float | None) -> ExitCode:
    """Show a job until it has ended.

    Raises:
        CommandError: there is no such job, or it was deleted.
    """
    console = output_console()
    watcher = Watcher(cluster, name)
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    show = _on_a_screen if console.is_terminal else _as_lines
    try:
        for screen in show(console, watcher):
            if screen.job.has_ended:
                break
            if deadline is not None and time.monotonic() >= deadline:
                note(f"{name} has not ended within {timeout_seconds:.0f} s; it goes on.")
                return ExitCode.TIMED_OUT
    except KeyboardInterrupt:
        note(f"The job goes on. Look again: kubectl finetune watch {name} -n {cluster.namespace}")
        return ExitCode.INTERRUPTED
    return ExitCode.OK if screen.job.status.phase is Phase.SUCCEEDED else ExitCode.FAILED


class Watcher:
    """Asks for what a screen needs, each part as often as it changes."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self._losses: dict[int, float] | None = None
        self._readings: dict[str, NodeReading] = {}
        self._read_at = float("-inf")
        self._last: Screen | None = None

    def look(self) -> Screen:
        """Return the job as it is now; when the API server does not answer, as it was, with a word about it.

        Raises:
            CommandError: there is no such job.
        """
        try:
            self._last = self._look()
        except CommandError as error:
            passing = error.code in (ExitCode.UNREACHABLE, ExitCode.FAILED)
            if self._last is None or not passing:
                raise
            self._last = Screen(**(vars(self._last) | {"trouble": f"Trying again: {error.message}"}))
        return self._last

    def _look(self) -> Screen:
        job = read_job(self._cluster.get(FINE_TUNE_JOB, self._name))
        pods = self._pods(job)
        if time.monotonic() - self._read_at >= _READ_SECONDS:
            self._readings = self._read(newest_gang(pods))
            self._read_at = time.monotonic()
        return Screen(job, pods_that_tell(pods), self._readings, self._curve(job, pods), self._events(job))

    def _pods(self, job: Job) -> tuple[PodView, ...]:
        return see_pods(job, self._cluster.list(POD, labels=selector(job)))

    def _read(self, gang: tuple[PodView, ...]) -> dict[str, NodeReading]:
        """Ask every exporter at once; who may not, or gets no answer, sees no GPUs, and the rest all the same."""

        def read(pod: PodView) -> NodeReading | None:
            try:
                return read_series(self._cluster.pod_page(pod.name, series.METRICS_PORT, series.METRICS_PATH))
            except CommandError:
                return None

        running = [pod for pod in gang if pod.running]
        with ThreadPoolExecutor(_MAX_READERS) as pool:
            found = zip(running, pool.map(read, running), strict=True)
            return {pod.name: reading for pod, reading in found if reading is not None}

    def _curve(self, job: Job, pods: tuple[PodView, ...]) -> dict[int, float]:
        """Return the losses: what rank 0 has logged before we looked, and what was told since."""
        rank_zero = next((pod for pod in newest_gang(pods) if pod.node_rank == 0 and pod.started), None)
        if self._losses is None and rank_zero is not None:
            self._losses = self._logged(rank_zero)
        losses = self._losses or {}
        progress = job.status.progress
        told = [(reading.step, reading.loss) for reading in self._readings.values()]
        told += [(progress.step, progress.loss)] if progress is not None else []
        for step, loss in told:
            if step and loss is not None and step > max(losses, default=0):
                losses = with_loss(losses, step, loss)
        if self._losses is not None:
            self._losses = losses
        return losses

    def _logged(self, pod: PodView) -> dict[int, float]:
        try:
            return losses_in_log(self._cluster.log_lines(pod.name, tail=_LOG_LINES))
        except CommandError:
            return {}

    def _events(self, job: Job) -> tuple[EventView, ...]:
        try:
            bodies = self._cluster.list(EVENT, fields=f"involvedObject.uid={job.uid}")
        except CommandError:
            return ()
        return tuple(sorted(map(see_event, bodies), key=lambda event: event.time))


def _on_a_screen(console: Console, watcher: Watcher) -> Iterator[Screen]:
    """Draw and draw again; the last screen stays."""
    screen = watcher.look()
    asked_at = time.monotonic()
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(draw_watch(screen, datetime.now(UTC), console.width), refresh=True)
            yield screen
            time.sleep(_DRAW_SECONDS)
            if time.monotonic() - asked_at >= _ASK_SECONDS:
                screen = watcher.look()
                asked_at = time.monotonic()


def _as_lines(console: Console, watcher: Watcher) -> Iterator[Screen]:
    """Print what is new: Events as they come, and where the job stands, not more often than one wants to read."""
    shown: set[tuple[str, str]] = set()
    line, shown_at = "", float("-inf")
    started = time.monotonic()
    while True:
        screen = watcher.look()
        elapsed = time.monotonic() - started
        for event in screen.events:
            if (event.time, event.message) not in shown:
                shown.add((event.time, event.message))
                _say(console, elapsed, f"{event.reason}: {event.message}")
        news = describe_progress(screen)
        told_enough = time.monotonic() - shown_at < _SAME_NEWS_SECONDS and news.split()[0] == line.partition(" ")[0]
        if news != line and not told_enough:
            line, shown_at = news, time.monotonic()
            _say(console, elapsed, news)
        if screen.job.has_ended:
            console.print(describe_outcome(screen.job))
        yield screen
        time.sleep(_ASK_SECONDS)


def _say(console: Console, elapsed_seconds: float, words: str) -> None:
    console.print(f"{elapsed_seconds:6.0f} s  {words}")
