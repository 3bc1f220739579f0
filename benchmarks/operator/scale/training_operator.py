"""Kubeflow's training-operator under measurement, with the limits of its client raised."""

import base64
import contextlib
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import yaml
from benchmarks.operator.scale.fake_cluster import FakeCluster, running_process
from benchmarks.operator.scale.subjects import IMAGE

from dev.cluster import layout
from dev.cluster.binaries import TRAINING_OPERATOR
from dev.cluster.training_operator import module_directory
from tests.integration.control_plane import free_ports

_START_SECONDS = 60
_NAMESPACE = "kubeflow"
_CERTIFICATE_SECRET = "training-operator-webhook-cert"
# Built into it; in a pod the Secret is mounted there.
_CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")
_NEEDED_KINDS = frozenset({"Namespace", "CustomResourceDefinition", "Secret", "ValidatingWebhookConfiguration"})
# By default 20 requests a second, 30 at once, and one thread.
_LIMITS = ("--kube-api-qps=300", "--kube-api-burst=600", "--controller-threads=16")


@contextlib.contextmanager
def running_training_operator(cluster: FakeCluster, directory: Path) -> Iterator[Popen[bytes]]:
    """Install it and run it as a process for as long as the block lasts.

    It has an easier life than in a real cluster: no webhook is called for its jobs, and as an administrator its
    requests do not wait in the API server's queues.

    Raises:
        TimeoutError: it did not become ready.
    """
    _install(cluster)
    metrics_port, probe_port, webhook_port = free_ports(3)
    arguments = [
        str(layout.binary(TRAINING_OPERATOR.programs[0])),
        f"--kubeconfig={cluster.plane.admin_kubeconfig}",
        "--enable-scheme=pytorchjob",
        f"--metrics-bind-address=127.0.0.1:{metrics_port}",
        f"--health-probe-bind-address=127.0.0.1:{probe_port}",
        f"--webhook-server-port={webhook_port}",
        f"--pytorch-init-container-image={IMAGE}",
        # As a production installation logs: a line for each reconcile costs more than the reconcile.
        "--zap-devel=false",
        "--zap-log-level=error",
        *_LIMITS,
    ]
    with running_process(directory, "training-operator", arguments) as process, _certificates(cluster):
        _wait_until_ready(f"http://127.0.0.1:{probe_port}/readyz", process, directory / "training-operator.log")
        yield process


def _install(cluster: FakeCluster) -> None:
    kubectl = cluster.kubectl.within(_NAMESPACE)
    standalone = kubectl.run("kustomize", str(module_directory() / "manifests" / "overlays" / "standalone"))
    for body in yaml.safe_load_all(standalone):
        if body["kind"] in _NEEDED_KINDS:
            # Server-side: its definitions are too large for the annotation of a client-side apply.
            kubectl.run("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump(_without_calls(body)))
    kubectl.run("wait", "crd", "pytorchjobs.kubeflow.org", "--for=condition=Established", "--timeout=30s")


@contextlib.contextmanager
def _certificates(cluster: FakeCluster) -> Iterator[None]:
    """Lay the files of the Secret that it makes for its webhook where it looks for them, as the kubelet does."""
    kubectl, deadline = cluster.kubectl.within(_NAMESPACE), time.monotonic() + _START_SECONDS
    while not (files := kubectl.get("secret", _CERTIFICATE_SECRET).get("data")):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the training-operator has not filled the Secret {_CERTIFICATE_SECRET}")
        time.sleep(0.2)
    _CERTIFICATES.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (_CERTIFICATES / name).write_bytes(base64.b64decode(content))
    try:
        yield
    finally:
        shutil.rmtree(_CERTIFICATES.parent)


def _without_calls(body: dict[str, Any]) -> dict[str, Any]:
    """Return a webhook configuration whose webhooks match no object: no Service leads to this process."""
    for webhook in body.get("webhooks") or ():
        webhook["objectSelector"] = {"matchLabels": {"benchmark": "call-the-webhook"}}
    return body


def _wait_until_ready(url: str, process: Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"the training-operator is not ready: {error}\n{log.read_text()[-3000:]}") from error
            time.sleep(0.2)
