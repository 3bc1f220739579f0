"""The operator as a process, as its container runs it, against any API server."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.control_plane import free_ports

_START_SECONDS = 30
_WRITING_VERBS = frozenset({"create", "patch", "delete"})


@dataclass(frozen=True)
class OperatorProcess:
    """A running operator."""

    process: subprocess.Popen[bytes]
    metrics_port: int
    probe_port: int
    log: Path

    def readiness(self) -> tuple[int, str]:
        """Return the status code and the words of the readiness probe; 0 while nobody listens."""
        return _get(f"http://127.0.0.1:{self.probe_port}/readyz")

    def samples(self) -> dict[tuple[str, ...], float]:
        """Return the operator's metrics by name and label values, the labels in alphabetical order."""
        code, text = _get(f"http://127.0.0.1:{self.metrics_port}/metrics")
        assert code == 200, text
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def requests(self) -> dict[tuple[str, str, str], int]:
        """Return how many requests it has made, by code, resource and verb."""
        name = "finetune_operator_api_requests_total"
        return {key[1:]: int(value) for key, value in self.samples().items() if key[0] == name}  # type: ignore[misc]

    def num_writes(self) -> int:
        """Return how many requests it has made that write."""
        return sum(count for (_, _, verb), count in self.requests().items() if verb in _WRITING_VERBS)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while self.readiness()[0] != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the operator is not ready: {self.readiness()}\n{self.log.read_text()[-4000:]}")
            time.sleep(0.1)

    def stop(self) -> int:
        """Stop it as Kubernetes does, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextmanager
def running_operator(
    kubeconfig: Path, directory: Path, environment: Mapping[str, str] | None = None
) -> Iterator[OperatorProcess]:
    """Run the operator with a kubeconfig for as long as the block lasts; it need not be ready yet."""
    metrics_port, probe_port = free_ports(2)
    variables = {
        "KUBECONFIG": str(kubeconfig),
        "PYTHONPATH": os.pathsep.join(["operator", "trainer"]),
        "FINETUNE_TRAINER_IMAGE": "finetune-trainer:test",
        "FINETUNE_METRICS_PORT": str(metrics_port),
        "FINETUNE_PROBE_PORT": str(probe_port),
        "FINETUNE_PROGRESS_INTERVAL_SECONDS": "1",
    }
    log = directory / f"operator-{metrics_port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune_operator", "run"],
            env=os.environ | variables | (environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    operator = OperatorProcess(process, metrics_port, probe_port, log)
    try:
        yield operator
    finally:
        operator.stop()


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)
