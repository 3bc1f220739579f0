"""Kueue itself as a process of this machine, with the definitions and webhooks of its own module."""

import base64
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from dev.cluster.binaries import KUEUE, ensure_built
from dev.cluster.commands import output_of
from tests.e2e.kubectl import Kubectl, Manifest, Refused
from tests.integration.control_plane import ControlPlane, free_ports

NAMESPACE = "kueue-system"
MODULE = "sigs.k8s.io/kueue"
# So that the API server finds its webhooks by the addresses of their Service.
API_SERVER_ARGUMENTS = ("--enable-aggregator-routing=true",)
FRAMEWORKS = ("batch/job", "kubeflow.org/pytorchjob")
_WEBHOOKS = ("job", "pytorchjob", "workload", "clusterqueue", "resourceflavor", "cohort")
_WEBHOOK_SERVICE, _WEBHOOK_SECRET = "kueue-webhook-service", "kueue-webhook-server-cert"
_START_SECONDS = 120


@contextmanager
def running_kueue(plane: ControlPlane, kubectl: Kubectl, directory: Path) -> Iterator[None]:
    """Kueue, ready, for as long as the block lasts."""
    ensure_built(KUEUE)
    port, probe_port = free_ports(2)
    manifests = _manifests(kubectl)
    hooks = [manifest for manifest in manifests if manifest["kind"].endswith("WebhookConfiguration")]
    _apply(kubectl, [manifest for manifest in manifests if manifest not in hooks])
    _apply(kubectl, [_endpoints(port)])
    certificates, configuration, log = directory / "certificates", directory / "kueue.yaml", directory / "kueue.log"
    certificates.mkdir()
    configuration.write_text(json.dumps(_configuration(certificates, port, probe_port)))
    command = [
        str(KUEUE.directory / KUEUE.programs[0]),
        f"--config={configuration}",
        "--feature-gates=VisibilityOnDemand=false",
    ]
    environment = os.environ | {"KUBECONFIG": str(plane.admin_kubeconfig)}
    # Its webhooks are there before it is ready: it writes its certificate's authority into them.
    _apply(kubectl, hooks)
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait_until(lambda: _listens(port), process, kubectl.within(NAMESPACE), certificates, log)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until(
    is_ready: Callable[[], bool], process: subprocess.Popen[bytes], kubectl: Kubectl, certificates: Path, log: Path
) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"Kueue is not ready\n{log.read_text()[-6000:]}")
        _mount_certificate(kubectl, certificates)
        time.sleep(0.5)


def _mount_certificate(kubectl: Kubectl, certificates: Path) -> None:
    """Play the kubelet, which mounts the Secret that Kueue fills."""
    try:
        data = kubectl.get("secret", _WEBHOOK_SECRET).get("data", {})
    except Refused:
        return
    for name, content in data.items():
        (certificates / name).write_bytes(base64.b64decode(content))


def _listens(port: int) -> bool:
    try:
        socket.create_connection((_address(), port), timeout=1).close()
    except OSError:
        return False
    return True


def _address() -> str:
    """Return an address of this machine: an endpoint may not be one of the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


def _configuration(certificates: Path, port: int, probe_port: int) -> Manifest:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f":{probe_port}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"port": port, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {
            "enable": True,
            "webhookServiceName": _WEBHOOK_SERVICE,
            "webhookSecretName": _WEBHOOK_SECRET,
        },
        "integrations": {"frameworks": list(FRAMEWORKS)},
    }


def _endpoints(port: int) -> Manifest:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": _WEBHOOK_SERVICE,
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": _WEBHOOK_SERVICE},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [_address()], "conditions": {"ready": True}}],
    }


def _apply(kubectl: Kubectl, manifests: Sequence[Manifest]) -> None:
    text = yaml.safe_dump_all(manifests)
    kubectl.within(NAMESPACE).run(
        "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text, timeout_seconds=120
    )


def _manifests(kubectl: Kubectl) -> list[Manifest]:
    """Return what of its own manifests a process outside the cluster needs."""
    rendered = kubectl.run("kustomize", str(_module_directory() / "config" / "default"))
    kinds = ("Namespace", "CustomResourceDefinition", "Secret", "Service")
    kept = []
    for manifest in yaml.safe_load_all(rendered):
        if manifest["kind"].endswith("WebhookConfiguration"):
            names = {f"{kind}{name}.kb.io" for kind in "mv" for name in _WEBHOOKS}
            manifest["webhooks"] = [hook for hook in manifest["webhooks"] if hook["name"] in names]
            kept.append(manifest)
        elif manifest["kind"] in kinds:
            manifest.get("spec", {}).pop("selector", None)  # of a Service: its endpoint is no pod
            kept.append(manifest)
    return kept


def _module_directory() -> Path:
    """Return where Go keeps the module's sources, which its manifests are part of."""
    download = ["go", "-C", str(KUEUE.source), "mod", "download", "-json", MODULE]
    advice = "can the Go module proxy be reached? then run it again"
    return Path(json.loads(output_of("kueue", download, advice=advice))["Dir"])
