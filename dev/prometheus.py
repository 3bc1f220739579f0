"""A real Prometheus beside a test or a recording, told of pods as the chart's PodMonitors would tell it.

Debian's Prometheus is built without Kubernetes discovery, so the pods' addresses are put into a file that it watches.
"""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SCRAPE_INTERVAL_SECONDS = 1
# What the chart's PodMonitor of the training pods names as podTargetLabels.
POD_TARGET_LABELS = ("finetune.dev/job", "finetune.dev/attempt", "finetune.dev/role")


@dataclass(frozen=True)
class Curve:
    """One series over time: its labels, and pairs of Unix time and value."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


class Prometheus:
    """Asks a running Prometheus."""

    def __init__(self, address: str, targets: Path) -> None:
        self._address = address
        self._targets = targets

    def scrape(self, pods: Sequence[Mapping[str, Any]]) -> None:
        """Scrape every container port named `metrics` of these pods from now on, and nothing else."""
        groups = [
            {"targets": [f"{pod['status']['podIP']}:{port['containerPort']}"], "labels": _labels(pod["metadata"])}
            for pod in pods
            for container in pod["spec"]["containers"]
            for port in container.get("ports", [])
            if port.get("name") == "metrics"
        ]
        temporary = self._targets.with_suffix(".new")
        temporary.write_text(json.dumps(groups))
        temporary.replace(self._targets)

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the series that an expression gives now, or at a Unix time, each with `metric` and `value`."""
        parameters = {"query": expression} | ({} if at is None else {"time": str(at)})
        series: list[dict[str, Any]] = self._ask("query", parameters)["result"]
        return series

    def query_range(self, expression: str, start: float, end: float, step_seconds: float) -> list[Curve]:
        """Return what an expression gives from one Unix time to another."""
        parameters = {"query": expression, "start": str(start), "end": str(end), "step": str(step_seconds)}
        return [
            Curve(series["metric"], [(float(time), float(value)) for time, value in series["values"]])
            for series in self._ask("query_range", parameters)["result"]
        ]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire now."""
        alerts = self._ask("alerts", {})["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            urllib.request.urlopen(f"{self._address}/-/ready", timeout=2)
        except (urllib.error.URLError, OSError):
            return False
        return True

    def _ask(self, what: str, parameters: Mapping[str, str]) -> Any:
        url = f"{self._address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as response:
            return json.load(response)["data"]


@contextmanager
def running_prometheus(directory: Path, rules: Path | None = None) -> Iterator[Prometheus]:
    """Start Prometheus on a free port; it scrapes each second what it is told to, and looks at the rules as often."""
    program = shutil.which("prometheus")
    assert program, "prometheus is not installed; `make cluster` installs Debian's package"
    config = directory / "prometheus.yml"
    config.write_text(yaml.safe_dump(_configuration(directory / "targets.json", rules)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{port}", directory / "targets.json")
            deadline = time.monotonic() + 30
            while not prometheus.is_ready():
                assert process.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < deadline, (directory / "log").read_text()
                time.sleep(0.2)
            yield prometheus
        finally:
            process.terminate()


def _labels(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels that the Prometheus operator puts on the series of a pod."""
    taken_over = {
        re.sub(r"[^a-zA-Z0-9_]", "_", name): metadata["labels"][name]
        for name in POD_TARGET_LABELS
        if name in metadata.get("labels", {})
    }
    return {"pod": metadata["name"], "namespace": metadata["namespace"], **taken_over}


def _configuration(targets: Path, rules: Path | None) -> dict[str, Any]:
    every = f"{SCRAPE_INTERVAL_SECONDS}s"
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [] if rules is None else [str(rules)],
        "scrape_configs": [
            {"job_name": "finetune", "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}]}
        ],
    }
