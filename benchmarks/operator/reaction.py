"""How fast and how quiet the operator is: what the claims in the documentation rest on.

    python -m benchmarks.operator.reaction                      a control plane and an operator of its own
    python -m benchmarks.operator.reaction --kubeconfig FILE --metrics http://HOST:8080/metrics
                                                                an operator that runs already

It applies jobs one at a time to an idle operator and measures from the request that creates the job to the first child
and to the prepare Job being seen in a watch; then many at once; then it leaves everything alone and counts writes.
Jobs are made in a namespace of their own, which is deleted at the end. No pod has to run for any of it.
"""

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import client, config, watch
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.jobs import tiny_job

JOB_LABEL = "finetune.dev/job"
CHILD_KINDS = ("persistentvolumeclaims", "configmaps", "jobs")
WRITING_VERBS = frozenset({"create", "patch", "delete"})


@dataclass
class Sightings:
    """When the first child and the prepare Job of each job were first seen, on the monotonic clock."""

    first_child: dict[str, float] = field(default_factory=dict)
    prepare_job: dict[str, float] = field(default_factory=dict)

    def see(self, kind: str, labels: dict[str, str]) -> None:
        job, now = labels.get(JOB_LABEL, ""), time.monotonic()
        self.first_child.setdefault(job, now)
        if kind == "jobs":
            self.prepare_job.setdefault(job, now)


@dataclass(frozen=True)
class Bench:
    """A cluster, a namespace in it, and the operator's metrics."""

    api: client.ApiClient
    namespace: str
    metrics_url: str

    async def create(self, name: str) -> float:
        """Create a job and return when the request was sent."""
        started = time.monotonic()
        await client.CustomObjectsApi(self.api).create_namespaced_custom_object(
            "finetune.dev", "v1alpha1", self.namespace, "finetunejobs", tiny_job(name)
        )
        return started

    async def samples(self) -> dict[tuple[str, ...], float]:
        """Read the operator's metrics by name and label values, the labels in alphabetical order."""
        async with aiohttp.ClientSession() as session, session.get(self.metrics_url) as response:
            text = await response.text()
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def num_requests(self) -> tuple[int, int]:
        """Return how many requests the operator has made, and how many of them write."""
        counts = [
            (key[3], int(value))
            for key, value in (await self.samples()).items()
            if key[0] == "finetune_operator_api_requests_total"
        ]
        return sum(count for _, count in counts), sum(count for verb, count in counts if verb in WRITING_VERBS)

    async def cpu_seconds(self) -> float:
        return (await self.samples())["process_cpu_seconds_total",]

    async def resource_versions(self) -> dict[str, str]:
        """Return the version of every FineTuneJob: an independent witness that nobody wrote."""
        listed: Any = await client.CustomObjectsApi(self.api).list_namespaced_custom_object(
            "finetune.dev", "v1alpha1", self.namespace, "finetunejobs"
        )
        return {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in listed["items"]}


async def measure_one_at_a_time(bench: Bench, sightings: Sightings, num_jobs: int) -> None:
    """Print how long an idle operator takes from a job to its first child and to its prepare Job."""
    started = {}
    for index in range(num_jobs):
        name = f"single-{index}"
        started[name] = await bench.create(name)
        await _until(lambda name=name: name in sightings.prepare_job, f"{name} has its prepare Job")
        await asyncio.sleep(0.5)
    for what, seen in (("first child", sightings.first_child), ("prepare Job", sightings.prepare_job)):
        seconds = [seen[name] - started[name] for name in started]
        print(f"one at a time, {num_jobs} jobs, applied -> {what}: {_percentiles(seconds)}")


async def measure_burst(bench: Bench, sightings: Sightings, num_jobs: int) -> None:
    """Print how long many jobs at once take until the last of them has its prepare Job."""
    names = [f"burst-{index}" for index in range(num_jobs)]
    cpu_seconds, started = await bench.cpu_seconds(), time.monotonic()
    for batch in range(0, num_jobs, 20):
        await asyncio.gather(*(bench.create(name) for name in names[batch : batch + 20]))
    created_seconds = time.monotonic() - started
    await _until(lambda: all(name in sightings.prepare_job for name in names), "all have their prepare Job", 600)
    total_seconds = max(sightings.prepare_job[name] for name in names) - started
    used = await bench.cpu_seconds() - cpu_seconds
    print(
        f"{num_jobs} jobs at once: created in {created_seconds:.1f} s, last prepare Job after {total_seconds:.1f} s, "
        f"operator {used:.1f} CPU s"
    )


async def measure_quiet(bench: Bench, seconds: float) -> None:
    """Print what the operator writes while nothing changes, once what was applied has come to rest."""
    await _settle(bench)
    requests, writes = await bench.num_requests()
    cpu_seconds, versions = await bench.cpu_seconds(), await bench.resource_versions()
    await asyncio.sleep(seconds)
    requests_after, writes_after = await bench.num_requests()
    used = await bench.cpu_seconds() - cpu_seconds
    unchanged = await bench.resource_versions() == versions
    print(
        f"quiet, {len(versions)} jobs, {seconds:.0f} s: {writes_after - writes} writes, {requests_after - requests} "
        f"requests, {used / seconds:.2%} of a core; every FineTuneJob {'unchanged' if unchanged else 'CHANGED'}"
    )


async def _settle(bench: Bench) -> None:
    """Wait until the operator has written nothing for ten seconds."""
    _, writes = await bench.num_requests()
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 10:
        await asyncio.sleep(1)
        _, now = await bench.num_requests()
        if now != writes:
            writes, quiet_since = now, time.monotonic()


async def _watch(api: client.ApiClient, namespace: str, kind: str, sightings: Sightings) -> None:
    core, batch = client.CoreV1Api(api), client.BatchV1Api(api)
    calls = {
        "persistentvolumeclaims": core.list_namespaced_persistent_volume_claim,
        "configmaps": core.list_namespaced_config_map,
        "jobs": batch.list_namespaced_job,
    }
    async with watch.Watch() as stream:
        async for event in stream.stream(calls[kind], namespace, label_selector=JOB_LABEL):
            if event["type"] == "ADDED":
                sightings.see(kind, event["object"].metadata.labels)


async def _until(condition: Any, what: str, timeout_seconds: float = 30) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {timeout_seconds:.0f} s: {what}")
        await asyncio.sleep(0.002)


def _percentiles(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    p95 = statistics.quantiles(ordered, n=20, method="inclusive")[-1]
    return f"p50 {statistics.median(ordered):.3f} s, p95 {p95:.3f} s, max {ordered[-1]:.3f} s"


@contextlib.asynccontextmanager
async def _bench(kubeconfig: Path, metrics_url: str) -> AsyncIterator[Bench]:
    configuration = client.Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    namespace = f"benchmark-{uuid.uuid4().hex[:6]}"
    async with client.ApiClient(configuration) as api:
        core = client.CoreV1Api(api)
        await core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=namespace)))
        try:
            yield Bench(api, namespace, metrics_url)
        finally:
            await core.delete_namespace(namespace)


@contextlib.contextmanager
def _own_cluster() -> Iterator[tuple[Path, str]]:
    """Start a control plane without nodes, install the definition, and run the operator against it."""
    from dev.cluster import layout
    from tests.e2e.kubectl import Kubectl
    from tests.integration.control_plane import running_control_plane
    from tests.integration.operator_process import running_operator

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with running_control_plane(directory) as plane:
            kubectl = Kubectl(layout.binary("kubectl"), plane.admin_kubeconfig)
            kubectl.run("apply", "--filename", "crds/finetunejobs.yaml")
            for storage_class in ("shared-fs", "network-disk"):
                kubectl.apply(_storage_class(storage_class))
            with running_operator(plane.admin_kubeconfig, directory) as operator:
                operator.wait_until_ready()
                yield plane.admin_kubeconfig, f"http://127.0.0.1:{operator.metrics_port}/metrics"


def _storage_class(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


async def measure(kubeconfig: Path, metrics_url: str, arguments: argparse.Namespace) -> None:
    """Run all measurements."""
    async with _bench(kubeconfig, metrics_url) as bench:
        sightings = Sightings()
        watches = [asyncio.create_task(_watch(bench.api, bench.namespace, kind, sightings)) for kind in CHILD_KINDS]
        await asyncio.sleep(1)
        await measure_one_at_a_time(bench, sightings, arguments.jobs)
        if arguments.burst:
            await measure_burst(bench, sightings, arguments.burst)
        await measure_quiet(bench, arguments.quiet_seconds)
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kubeconfig", type=Path, help="a cluster with a running operator")
    parser.add_argument("--metrics", help="the address of that operator's metrics")
    parser.add_argument("--jobs", type=int, default=40, help="jobs to apply one at a time")
    parser.add_argument("--burst", type=int, default=0, help="jobs to apply at once after that")
    parser.add_argument("--quiet-seconds", type=float, default=60, help="how long to listen for writes")
    arguments = parser.parse_args()
    if (arguments.kubeconfig is None) != (arguments.metrics is None):
        parser.error("--kubeconfig and --metrics belong together")
    if arguments.kubeconfig is not None:
        asyncio.run(measure(arguments.kubeconfig, arguments.metrics, arguments))
        return
    with _own_cluster() as (kubeconfig, metrics_url):
        asyncio.run(measure(kubeconfig, metrics_url, arguments))


if __name__ == "__main__":
    main()
