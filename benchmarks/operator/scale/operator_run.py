"""The finetune-operator under measurement: its process, and what it says of itself."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.operator.scale.fake_cluster import FakeCluster
from benchmarks.operator.scale.measurements import Writes
from benchmarks.operator.scale.processes import cpu_seconds, peak_memory_bytes

from tests.integration.operator_process import OperatorProcess, running_operator

_WRITING_VERBS = frozenset({"create", "patch", "delete"})
# As installed, not as the tests run it, which read progress each second.
ENVIRONMENT = {"FINETUNE_PROGRESS_INTERVAL_SECONDS": "10"}


@dataclass(frozen=True)
class Quiet:
    """What an operator does while nothing changes."""

    seconds: float
    num_requests: int
    num_writes: int
    cpu_share: float
    """Of one core."""


@dataclass(frozen=True)
class Restart:
    """How an operator finds its feet again among jobs that run."""

    ready_seconds: float
    settled_seconds: float
    """From the start of the process until every job was looked at."""
    cpu_seconds: float
    num_writes: int
    """Until it has been settled for some seconds."""
    peak_memory_bytes: int


async def measure_quiet(operator: OperatorProcess, seconds: float) -> Quiet:
    """Leave everything alone and count."""
    requests, used = _requests(operator), cpu_seconds(operator.process.pid)
    await asyncio.sleep(seconds)
    since = _requests(operator) - requests
    cpu_share = (cpu_seconds(operator.process.pid) - used) / seconds
    return Quiet(seconds, since.total(), num_writes(since), cpu_share)


async def measure_restart(cluster: FakeCluster, directory: Path, num_jobs: int, linger_seconds: float) -> Restart:
    """Start a second operator, after the first has ended, and wait until it has looked at every job."""
    started = time.monotonic()
    with running_operator(cluster.plane.operator_kubeconfig, directory, ENVIRONMENT) as operator:
        while operator.readiness()[0] != 200:
            await asyncio.sleep(0.05)
        ready_seconds = time.monotonic() - started
        while not _has_looked_at_all(operator, num_jobs):
            await asyncio.sleep(0.1)
        settled_seconds = time.monotonic() - started
        used = cpu_seconds(operator.process.pid)
        await asyncio.sleep(linger_seconds)
        memory = peak_memory_bytes(operator.process.pid)
        return Restart(ready_seconds, settled_seconds, used, num_writes(_requests(operator)), memory)


def num_writes(requests: Writes) -> int:
    """Return how many of the requests write."""
    return sum(count for (verb, _), count in requests.items() if verb in _WRITING_VERBS)


def _requests(operator: OperatorProcess) -> Writes:
    """Return the requests that the operator has made, by verb and resource; kopf's few watches are not among them."""
    totals: Writes = Counter()
    for (_, resource, verb), count in operator.requests().items():
        totals[verb, resource] += count
    return totals


requests_of = _requests


def _has_looked_at_all(operator: OperatorProcess, num_jobs: int) -> bool:
    samples = operator.samples()
    looked = samples.get(("finetune_operator_reconcile_duration_seconds_count",), 0)
    busy = samples["finetune_operator_queue_depth",] + samples["finetune_operator_queue_working",]
    return looked >= num_jobs and busy == 0
