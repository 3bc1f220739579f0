"""A real Prometheus beside a test, which finds training pods as the chart's PodMonitor would."""

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

    def __init__(self, address: str) -> None:
        self._address = address

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
def running_prometheus(kubeconfig: Path, namespace: str, directory: Path) -> Iterator[Prometheus]:
    """Start Prometheus on a free port; it scrapes every container port named `metrics` each second."""
    program = shutil.which("prometheus")
    assert program, "prometheus is not installed; `make cluster` installs Debian's package"
    config = directory / "prometheus.yml"
    config.write_text(yaml.safe_dump(_configuration(kubeconfig, namespace)))
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
            prometheus = Prometheus(f"http://127.0.0.1:{port}")
            deadline = time.monotonic() + 30
            while not prometheus.is_ready():
                assert process.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < deadline, (directory / "log").read_text()
                time.sleep(0.2)
            yield prometheus
        finally:
            process.terminate()


def _configuration(kubeconfig: Path, namespace: str) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {
                "job_name": "finetune",
                "kubernetes_sd_configs": [
                    {"role": "pod", "kubeconfig_file": str(kubeconfig), "namespaces": {"names": [namespace]}}
                ],
                "relabel_configs": [
                    {
                        "source_labels": ["__meta_kubernetes_pod_container_port_name"],
                        "regex": "metrics",
                        "action": "keep",
                    },
                    {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
                    {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
                ],
            }
        ],
    }
