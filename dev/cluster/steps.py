"""Runs steps side by side as far as their order allows; shows how far they are and how long they took last time."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.commands import stop_running

HEARTBEAT_SECONDS = 20.0
QUICK_SECONDS = 2.0


@dataclass(frozen=True)
class Step:
    """One thing that has to be done.

    Attributes:
        name: what a person reads, unique in a run.
        run: does it; returns a few words on what was done, such as ``already there``. Must be idempotent.
        after: names of the steps that have to be done before.
    """

    name: str
    run: Callable[[], str]
    after: tuple[str, ...] = ()


def show_line(text: str) -> None:
    """Print a line at once: whoever waits reads it through a pipe."""
    print(text, flush=True)


class Durations:
    """How long each step took when it last had something to do, in a small JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._seconds: dict[str, float] = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            self._seconds = {}

    def last(self, name: str) -> str:
        """Return ``(last time 205 s)``, or nothing when the step was never timed."""
        seconds = self._seconds.get(name)
        return "" if seconds is None else f" (last time {seconds:.0f} s)"

    def record(self, name: str, seconds: float) -> None:
        """Remember a duration, unless the step only looked and found its work done."""
        if seconds < QUICK_SECONDS:
            return
        self._seconds[name] = round(seconds, 1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(self._seconds, indent=1, sort_keys=True) + "\n")
        temporary.replace(self._path)


class Run:
    """The steps of one command, shown as they start, go on and end."""

    def __init__(self, steps: Sequence[Step], durations: Durations, show: Callable[[str], None] = show_line) -> None:
        names = {step.name for step in steps}
        for step in steps:
            if missing := set(step.after) - names:
                raise ValueError(f"step {step.name!r} waits for unknown steps {sorted(missing)}")
        self._steps = list(steps)
        self._durations = durations
        self._show = show
        self._started: dict[str, float] = {}
        self._done: set[str] = set()

    def execute(self) -> None:
        """Do every step; at the first failure stop the others and raise it."""
        futures: dict[Future[str], Step] = {}
        # Steps mostly wait for other programs; the threads cost nothing.
        with ThreadPoolExecutor(max_workers=len(self._steps)) as threads:
            try:
                self._start_ready(threads, futures)
                while futures:
                    finished, _ = wait(futures, timeout=HEARTBEAT_SECONDS, return_when=FIRST_COMPLETED)
                    if not finished:
                        self._show_heartbeat()
                    for future in finished:
                        self._finish(futures.pop(future), future.result())
                    self._start_ready(threads, futures)
            except BaseException:
                stop_running()
                raise

    def _start_ready(self, threads: ThreadPoolExecutor, futures: dict[Future[str], Step]) -> None:
        for step in self._steps:
            if step.name not in self._started and self._done.issuperset(step.after):
                self._started[step.name] = time.monotonic()
                futures[threads.submit(step.run)] = step

    def _finish(self, step: Step, outcome: str) -> None:
        seconds = time.monotonic() - self._started[step.name]
        last = self._durations.last(step.name) if seconds >= QUICK_SECONDS else ""
        self._durations.record(step.name, seconds)
        self._done.add(step.name)
        self._show(f"[{len(self._done):2d}/{len(self._steps)}] {step.name:<28} {outcome}, {seconds:.1f} s{last}")

    def _show_heartbeat(self) -> None:
        now = time.monotonic()
        for name, started in self._started.items():
            if name not in self._done:
                self._show(f"        {name:<28} running for {now - started:.0f} s{self._durations.last(name)}")
