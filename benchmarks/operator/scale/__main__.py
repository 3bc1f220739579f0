"""Measure this project's operator with many jobs at once, and the training-operator beside it.

python -m benchmarks.operator.scale                     1,000 jobs of each
python -m benchmarks.operator.scale --jobs 1000 3000    and then 3,000, with their costs compared
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from benchmarks.operator.scale import report
from benchmarks.operator.scale.api import ApiServer
from benchmarks.operator.scale.exporter import serving_progress
from benchmarks.operator.scale.fake_cluster import running_fake_cluster
from benchmarks.operator.scale.isolation import enter_own_network
from benchmarks.operator.scale.measurements import Observer
from benchmarks.operator.scale.operator_run import ENVIRONMENT, measure_quiet, measure_restart, requests_of
from benchmarks.operator.scale.subjects import fine_tune_jobs

from dev.cluster.binaries import KWOK, ensure_built
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
                    before = requests_of(operator)
                    burst = await observer.burst(num_jobs, "burst", timeout_seconds=60 + num_jobs * _SECONDS_A_JOB)
                    requests = requests_of(operator) - before
                    await observer.until_settled()
                    quiet = await measure_quiet(operator, arguments.quiet_seconds)
            restart = await measure_restart(cluster, directory, num_jobs + arguments.single, linger_seconds=15)
            with running_operator(cluster.plane.operator_kubeconfig, directory, ENVIRONMENT) as operator:
                operator.wait_until_ready()
                observer = Observer(api, subject, {**cluster.processes, subject.name: operator.process.pid})
                await observer.until_settled()
                deletion = await observer.delete_all(timeout_seconds=60 + num_jobs * _SECONDS_A_JOB)
    return report.OperatorFigures(single, burst, requests, quiet, restart, deletion)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000], help="how many at once; one run for each number")
    parser.add_argument("--single", type=int, default=20, help="jobs to apply one at a time before that")
    parser.add_argument("--quiet-seconds", type=float, default=180, help="how long to listen for writes")
    parser.add_argument("--output", type=Path, help="a file for the figures as JSON")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="keep logs here")
    arguments = parser.parse_args()
    enter_own_network("benchmarks.operator.scale")
    ensure_built(KWOK)
    figures = []
    for num_jobs in arguments.jobs:
        with tempfile.TemporaryDirectory() as temporary:
            directory = arguments.keep or Path(temporary)
            directory.mkdir(parents=True, exist_ok=True)
            figures.append(asyncio.run(measure_operator(directory, num_jobs, arguments)))
        print(report.operator_text(figures[-1]), flush=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([report.as_document(found) for found in figures], indent=1))


if __name__ == "__main__":
    main()
