"""Draws the dashboard Run from a real run: applies a job, lets a real Prometheus scrape it, and draws what that has.

    python -m dev.dashboards.record --output docs/images/run-dashboard.svg

It needs a cluster with the chart, such as `make cluster` and `make demo` leave behind, and Debian's prometheus. The job
is the sample of the demo, and is deleted at the end with its namespace.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dev.cluster import layout
from dev.dashboards import DASHBOARDS
from dev.dashboards.picture import collect, draw
from dev.prometheus import Prometheus, running_prometheus

SAMPLE = layout.REPOSITORY / "manifests" / "samples" / "function-calling-demo.yaml"
NAMESPACE = "dashboard-recording"
START_TIMEOUT_SECONDS = 900
_PATIENCE_SECONDS = 60  # beyond the time that is drawn, for whoever looks at the job


def main() -> None:
    """Record one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the picture, SVG")
    parser.add_argument("--job", type=Path, default=SAMPLE, help="the FineTuneJob")
    parser.add_argument("--epochs", type=int, default=2, help="passes over its data, which is short")
    parser.add_argument("--minutes", type=float, default=15, help="of the training that are drawn, at most")
    parser.add_argument("--checkpoint-every", type=int, default=6, help="steps from one checkpoint to the next")
    arguments = parser.parse_args()
    job = next(found for found in yaml.safe_load_all(arguments.job.read_text()) if found["kind"] == "FineTuneJob")
    job["metadata"] = {"name": job["metadata"]["name"]}
    job["spec"] |= {"checkpoint": {"everySteps": arguments.checkpoint_every}, "evaluation": {"enabled": False}}
    job["spec"]["training"]["epochs"] = arguments.epochs
    _kubectl("create", "namespace", NAMESPACE)
    try:
        with tempfile.TemporaryDirectory() as directory, running_prometheus(Path(directory)) as prometheus:
            start, end = _run(job, prometheus, arguments.minutes)
            page, name = DASHBOARDS["run"], job["metadata"]["name"]
            drawn = collect(page, prometheus, {"namespace": NAMESPACE, "job": name}, start, end)
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(draw(page, drawn, start, end, _caption(job)))
    finally:
        _kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    print(f"wrote {arguments.output}: {arguments.output.stat().st_size / 1000:.0f} kB")


def _run(job: dict[str, Any], prometheus: Prometheus, minutes: float) -> tuple[float, float]:
    """Run the job, scraped, to its end or for some minutes; return the Unix times between which it trained."""
    _kubectl("apply", "--filename", "-", stdin=yaml.safe_dump(job))
    name = job["metadata"]["name"]
    _wait_until(lambda: _status(name).get("phase") == "Running", "it runs", START_TIMEOUT_SECONDS)
    pods = json.loads(_kubectl("get", "pods", "--selector", "finetune.dev/stage=train", "--output", "json"))["items"]
    prometheus.scrape(pods)
    _wait_until(
        lambda: _status(name).get("progress", {}).get("step", 0) >= 1, "its first step is done", START_TIMEOUT_SECONDS
    )
    start = time.time()

    def is_enough() -> bool:
        status = _status(name)
        return status["phase"] != "Running" or time.time() > start + 60 * minutes

    _wait_until(is_enough, "it has trained", 60 * minutes + _PATIENCE_SECONDS)
    return start, time.time() - 2


def _caption(job: dict[str, Any]) -> str:
    compute = job["spec"]["compute"]
    return (
        f"Drawn by dev/dashboards/record.py, not by Grafana, from what a real Prometheus scraped of the sample "
        f"{job['metadata']['name']} on {compute['nodes']} nodes without GPUs; minutes since the first step."
    )


def _status(name: str) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(_kubectl("get", "finetunejob", name, "--output", "json")).get("status", {})
    if status.get("phase") == "Failed":
        raise SystemExit(f"FineTuneJob {name} failed: {status['conditions'][-1]['message']}")
    return status


def _wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:.0f} s: {what}")
        time.sleep(1)
    print(what, flush=True)


def _kubectl(*words: str, stdin: str | None = None) -> str:
    command = [str(layout.binary("kubectl")), "--kubeconfig", str(layout.KUBECONFIG), "--namespace", NAMESPACE, *words]
    finished = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise SystemExit(f"`kubectl {' '.join(words)}` failed: {finished.stderr.strip()}")
    return finished.stdout


if __name__ == "__main__":
    main()
