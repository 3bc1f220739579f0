"""A real Prometheus beside a test, told of pods as the chart's PodMonitor would tell it.

Debian's Prometheus is built without Kubernetes discovery, so the pods' addresses are put into a file that it watches.
"""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml


class Prometheus:
    """Asks a running Prometheus."""

    def __init__(self, address: str, targets: Path) -> None:
        self._address = address
        self._targets = targets

    def scrape(self, pods: list[dict[str, Any]]) -> None:
        """Scrape every container port named `metrics` of these pods from now on, labelled with pod and namespace."""
        groups = [
            {
                "targets": [f"{pod['status']['podIP']}:{port['containerPort']}"],
                "labels": {"pod": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"]},
            }
            for pod in pods
            for container in pod["spec"]["containers"]
            for port in container.get("ports", [])
            if port.get("name") == "metrics"
        ]
        temporary = self._targets.with_suffix(".new")
        temporary.write_text(json.dumps(groups))
        temporary.replace(self._targets)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression gives, each with `metric` and `value`."""
        url = f"{self._address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=10) as response:
            series: list[dict[str, Any]] = json.load(response)["data"]["result"]
        return series

    def is_ready(self) -> bool:
        try:
            urllib.request.urlopen(f"{self._address}/-/ready", timeout=2)
        except (urllib.error.URLError, OSError):
            return False
        return True


@contextmanager
def running_prometheus(directory: Path) -> Iterator[Prometheus]:
    """Start Prometheus on a free port; it scrapes each second what it is told to."""
    program = shutil.which("prometheus")
    assert program, "prometheus is not installed; `make cluster` installs Debian's package"
    config = directory / "prometheus.yml"
    config.write_text(yaml.safe_dump(_configuration(directory / "targets.json")))
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


def _configuration(targets: Path) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {"job_name": "finetune", "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}]}
        ],
    }
