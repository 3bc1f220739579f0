"""What is measured of an operator: many jobs at once, one at a time, nothing at all, a restart, and the end of all."""

import asyncio
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from benchmarks.operator.scale.api import ApiServer, Body
from benchmarks.operator.scale.processes import cpu_seconds, cpu_seconds_of, peak_memory_bytes
from benchmarks.operator.scale.subjects import Sightings, Subject, Watched

Writes = Counter[tuple[str, str]]

# Writes of the control plane for itself: heartbeats, leases.
_BACKGROUND_RESOURCES = frozenset({"leases", "nodes/status", "nodes", "events"})
_QUIET_SECONDS = 10.0


@dataclass(frozen=True)
class Reached:
    """When the jobs of a burst reached a milestone."""

    last_seconds: float
    """When the last one did, from the start of the burst."""
    p50_seconds: float
    p95_seconds: float
    """From the request that creates a job, one after the other."""


@dataclass(frozen=True)
class Burst:
    """Many jobs applied at once."""

    num_jobs: int
    created_seconds: float
    reached: Mapping[str, Reached]
    cpu_seconds: Mapping[str, float]
    """By program, until every job runs."""
    peak_memory_bytes: int
    writes: Writes
    """Of all clients, by verb and resource."""


@dataclass(frozen=True)
class Deletion:
    """All jobs deleted at once."""

    jobs_seconds: float
    """Until the custom resources are gone."""
    all_seconds: float
    """Until the garbage collector has taken what they owned."""
    cpu_seconds: float


class Observer:
    """Applies jobs of a subject and sees what becomes of them."""

    def __init__(self, api: ApiServer, subject: Subject, processes: Mapping[str, int]) -> None:
        self._api = api
        self._subject = subject
        self._processes = processes
        self._operator = processes[subject.name]
        self.sightings = Sightings()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch for as long as the block lasts; a watch that ends with an error ends the block."""
        async with asyncio.TaskGroup() as group:
            watches = [
                group.create_task(
                    self._api.watch(watched.path, partial(self._see, watched), metadata_only=watched.metadata_only)
                )
                for watched in self._subject.watched
            ]
            await asyncio.sleep(1)
            yield
            for task in watches:
                task.cancel()

    async def burst(self, num_jobs: int, prefix: str, timeout_seconds: float) -> Burst:
        """Apply jobs at once and wait until every one of them runs."""
        names = [f"{prefix}-{index}" for index in range(num_jobs)]
        applied: dict[str, float] = {}
        writes, used = await self._api.writes(), cpu_seconds_of(self._processes)
        started = time.monotonic()
        await asyncio.gather(*(self._apply(name, applied) for name in names))
        created_seconds = time.monotonic() - started
        await self._until_all(names, timeout_seconds)
        used_since = {name: seconds - used[name] for name, seconds in cpu_seconds_of(self._processes).items()}
        writes = await self._api.writes() - writes
        return Burst(
            num_jobs=num_jobs,
            created_seconds=created_seconds,
            reached={
                milestone.name: _reached(self.sightings.reached(milestone), applied, started)
                for milestone in self._subject.milestones
            },
            cpu_seconds=used_since,
            peak_memory_bytes=peak_memory_bytes(self._operator),
            writes=writes,
        )

    async def one_at_a_time(self, num_jobs: int) -> dict[str, Reached]:
        """Apply jobs to an idle operator, each when the one before runs."""
        applied: dict[str, float] = {}
        names = [f"single-{index}" for index in range(num_jobs)]
        for name in names:
            await self._apply(name, applied)
            await self._until_all([name], timeout_seconds=60)
            await asyncio.sleep(0.5)
        reached = {}
        for milestone in self._subject.milestones:
            times = {name: seconds for name, seconds in self.sightings.reached(milestone).items() if name in applied}
            reached[milestone.name] = _reached(times, applied, min(applied.values()))
        return reached

    async def delete_all(self, timeout_seconds: float) -> Deletion:
        """Delete every job and wait until nothing of them is left."""
        used, started = cpu_seconds(self._operator), time.monotonic()
        await self._api.delete_all(self._subject.path)
        await self._until_gone([self._subject.path], timeout_seconds)
        jobs_seconds = time.monotonic() - started
        await self._until_gone(self._subject.leftovers, timeout_seconds)
        return Deletion(jobs_seconds, time.monotonic() - started, cpu_seconds(self._operator) - used)

    async def until_settled(self) -> None:
        """Wait until nobody has written anything but heartbeats for some seconds."""
        writes, since = await self._foreground_writes(), time.monotonic()
        while time.monotonic() - since < _QUIET_SECONDS:
            await asyncio.sleep(1)
            if (now := await self._foreground_writes()) != writes:
                writes, since = now, time.monotonic()

    async def _foreground_writes(self) -> Writes:
        return without_background(await self._api.writes())

    def _see(self, watched: Watched, event: str, body: Body) -> None:
        shown = watched.milestone_of(body) if event != "DELETED" else None
        if shown is not None:
            job, milestone = shown
            self.sightings.see(milestone, job, body["metadata"]["name"], time.monotonic())

    async def _apply(self, name: str, applied: dict[str, float]) -> None:
        await self._api.create(
            self._subject.path, self._subject.manifest(name), about_to_send=partial(_note, applied, name)
        )

    async def _until_all(self, names: Iterable[str], timeout_seconds: float) -> None:
        wanted = frozenset(names)

        def all_there() -> bool:
            return all(wanted <= self.sightings.reached(milestone).keys() for milestone in self._subject.milestones)

        def progress() -> str:
            counts = {
                milestone.name: len(wanted & self.sightings.reached(milestone).keys())
                for milestone in self._subject.milestones
            }
            return f"of {len(wanted)} jobs of {self._subject.name} there are {counts}"

        await _until(all_there, progress, timeout_seconds, pause_seconds=0.005 if len(wanted) == 1 else 0.1)

    async def _until_gone(self, paths: Iterable[str], timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        for path in paths:
            # What a namespace always has (its ConfigMap with the cluster's certificates) does not count.
            while (left := await self._api.count(path)) > (1 if path.endswith("configmaps") else 0):
                if time.monotonic() > deadline:
                    raise SystemExit(f"not gone within {timeout_seconds:.0f} s: {left} objects of {path}")
                await asyncio.sleep(0.25)


def without_background(writes: Writes) -> Writes:
    """Return the writes that a job causes: no heartbeats, no leases, no Events."""
    return Counter({key: count for key, count in writes.items() if key[1] not in _BACKGROUND_RESOURCES})


def _note(applied: dict[str, float], name: str) -> None:
    applied[name] = time.monotonic()


def _reached(times: Mapping[str, float], applied: Mapping[str, float], started: float) -> Reached:
    seconds = sorted(times[name] - applied[name] for name in applied)
    p95_seconds = statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
    return Reached(max(times[name] for name in applied) - started, statistics.median(seconds), p95_seconds)


async def _until(
    condition: Callable[[], bool], progress: Callable[[], str], timeout_seconds: float, pause_seconds: float
) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {timeout_seconds:.0f} s: {progress()}")
        await asyncio.sleep(pause_seconds)
