"""Measure this project's operator with many jobs at once, and the training-operator beside it.

python -m benchmarks.operator.scale                     1,000 jobs of each
python -m benchmarks.operator.scale --jobs 1000 3000    and then 3,000, with their costs compared
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.operator.scale import report
from benchmarks.operator.scale.api import ApiServer
from benchmarks.operator.scale.exporter import serving_progress
from benchmarks.operator.scale.fake_cluster import running_fake_cluster
from benchmarks.operator.scale.isolation import enter_own_network
from benchmarks.operator.scale.measurements import Observer
from benchmarks.operator.scale.operator_run import ENVIRONMENT, measure_quiet, measure_restart, requests_of
from benchmarks.operator.scale.subjects import fine_tune_jobs, pytorch_jobs
from benchmarks.operator.scale.training_operator import running_training_operator

from dev.cluster.binaries import KWOK, TRAINING_OPERATOR, ensure_built
from tests.integration.control_plane import ADMIN_TOKEN
from tests.integration.operator_process import running_operator

_SECONDS_A_JOB = 0.6  # after which a burst is given up


async def measure_operator(directory: Path, num_jobs: int, arguments: argparse.Namespace) -> report.OperatorFigures:
    """Measure this project's operator on a cluster of its own."""
    subject = fine_tune_jobs()
    with running_fake_cluster(directory) as cluster:
        async with ApiServer.connect(cluster.plane.url, ADMIN_TOKEN) as api, serving_progress():
            with running_operator(cluster.plane.operator_kubeconfig, directory, ENVIRONMENT) as operator:
                operator.wait_until_ready()
                observer = Observer(api, subject, {**cluster.processes, subject.name: operator.process.pid})
                async with observer.watching():
                    single = await observer.one_at_a_time(arguments.single)
                    _tell(report.single_text(single))
                    before = requests_of(operator)
                    burst = await observer.burst(num_jobs, "burst", timeout_seconds=60 + num_jobs * _SECONDS_A_JOB)
                    requests = requests_of(operator) - before
                    _tell(report.burst_text(subject.name, burst), report.requests_text(requests))
                    await observer.until_settled()
                    quiet = await measure_quiet(operator, arguments.quiet_seconds)
                    _tell(report.quiet_text(quiet))
            restart = await measure_restart(cluster, directory, num_jobs + arguments.single, linger_seconds=15)
            _tell(report.restart_text(restart))
            with running_operator(cluster.plane.operator_kubeconfig, directory, ENVIRONMENT) as operator:
                operator.wait_until_ready()
                observer = Observer(api, subject, {**cluster.processes, subject.name: operator.process.pid})
                await observer.until_settled()
                deletion = await observer.delete_all(timeout_seconds=60 + num_jobs * _SECONDS_A_JOB)
                _tell(report.deletion_text(deletion))
    return report.OperatorFigures(single, burst, requests, quiet, restart, deletion)


async def measure_training_operator(directory: Path, num_jobs: int) -> report.PeerFigures:
    """Measure the training-operator on a cluster of its own: as many jobs of the same shape."""
    subject = pytorch_jobs()
    with running_fake_cluster(directory) as cluster, running_training_operator(cluster, directory) as process:
        async with ApiServer.connect(cluster.plane.url, ADMIN_TOKEN) as api:
            observer = Observer(api, subject, {**cluster.processes, subject.name: process.pid})
            async with observer.watching():
                timeout_seconds = 60 + num_jobs * _SECONDS_A_JOB
                burst = await observer.burst(num_jobs, "burst", timeout_seconds)
                _tell(report.burst_text(subject.name, burst))
                await observer.until_settled()
                deletion = await observer.delete_all(timeout_seconds)
                _tell(report.deletion_text(deletion))
    return report.PeerFigures(burst, deletion)


def _tell(*texts: str) -> None:
    """Print figures as soon as they are there: a long run may be cut off."""
    print(*texts, sep="\n", flush=True)


def machine_speed_seconds() -> float:
    """Return what a fixed piece of work costs now: a shared machine is not always equally fast."""
    started = time.process_time()
    sum(number * number for number in range(5_000_000))
    return time.process_time() - started


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000], help="how many at once; one run for each number")
    parser.add_argument("--single", type=int, default=20, help="jobs to apply one at a time before that")
    parser.add_argument("--quiet-seconds", type=float, default=180, help="how long to listen for writes")
    parser.add_argument("--output", type=Path, help="a file for the figures as JSON")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="keep logs here")
    parser.add_argument("--without-peer", action="store_true", help="leave the training-operator out")
    arguments = parser.parse_args()
    ensure_built(KWOK)
    if not arguments.without_peer:
        ensure_built(TRAINING_OPERATOR)
    enter_own_network("benchmarks.operator.scale")
    documents = []
    for num_jobs in arguments.jobs:
        load, speed = os.getloadavg()[0], machine_speed_seconds()
        print(f"# {num_jobs} jobs; load {load:.1f}, a fixed piece of work takes {speed:.2f} CPU s", flush=True)
        with _run_directory(arguments.keep, f"operator-{num_jobs}") as directory:
            figures = asyncio.run(measure_operator(directory, num_jobs, arguments))
        documents.append(report.as_document(figures))
        if arguments.without_peer:
            continue
        speed = machine_speed_seconds()
        print(f"# the peer; load {os.getloadavg()[0]:.1f}, the work takes {speed:.2f} CPU s", flush=True)
        with _run_directory(arguments.keep, f"peer-{num_jobs}") as directory:
            peer = asyncio.run(measure_training_operator(directory, num_jobs))
        documents.append(report.as_document(peer))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(documents, indent=1))


@contextlib.contextmanager
def _run_directory(keep: Path | None, name: str) -> Iterator[Path]:
    """Make a fresh directory for the logs and the data of one run, which goes away unless it is to be kept."""
    if keep is not None:
        directory = keep / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        yield directory
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


if __name__ == "__main__":
    main()
