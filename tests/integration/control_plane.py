"""A control plane without nodes for a test: a real etcd and kube-apiserver, on demand the Job and garbage controllers.

What envtest is for Go: up in seconds, on free ports, everything it writes in one directory. Pods are never run; a test
plays the kubelet by writing their status.
"""

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from ssl import CERT_NONE, SSLContext, create_default_context

import yaml

from dev.cluster import layout

CONTROLLERS = (
    "job-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "persistentvolume-binder-controller",
)
ADMIN_TOKEN = "admin-of-a-test"
OPERATOR_TOKEN = "operator-of-a-test"
OPERATOR_USER = "system:serviceaccount:finetune-system:finetune-operator"
_START_SECONDS = 60
_API_SERVER = 1  # its place among the processes


@dataclass(frozen=True)
class ControlPlane:
    """Where it is, and how to be its administrator or the operator's ServiceAccount."""

    url: str
    etcd_url: str
    admin_kubeconfig: Path
    operator_kubeconfig: Path
    """Credentials that may do what RBAC grants to `OPERATOR_USER`, at first nothing."""
    directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """etcd, the API server and, where there are any, the controllers."""

    def stop_api_server(self) -> None:
        """Take the API server away, as a crash does: asked to end it would first wait for those who watch."""
        self.processes[_API_SERVER].kill()
        self.processes[_API_SERVER].wait()

    def start_api_server(self) -> None:
        """Start it again at the same address, and wait until it is ready."""
        arguments = self.processes[_API_SERVER].args
        assert isinstance(arguments, list)
        self.processes[_API_SERVER] = _start(self.directory, "kube-apiserver", arguments)
        _wait_until_ready(self)


@contextmanager
def running_control_plane(
    directory: Path,
    controllers: Sequence[str] = CONTROLLERS,
    api_server_arguments: Sequence[str] = (),
    controller_manager_arguments: Sequence[str] = (),
) -> Iterator[ControlPlane]:
    """Run a control plane for as long as the block lasts."""
    port, etcd_port, etcd_peer_port = free_ports(3)
    plane = ControlPlane(
        url=f"https://127.0.0.1:{port}",
        etcd_url=f"http://127.0.0.1:{etcd_port}",
        admin_kubeconfig=directory / "admin.kubeconfig",
        operator_kubeconfig=directory / "operator.kubeconfig",
        directory=directory,
    )
    _write_credentials(plane)
    try:
        plane.processes.append(_start(directory, "etcd", _etcd_arguments(directory, etcd_port, etcd_peer_port)))
        arguments = [*_apiserver_arguments(directory, port, etcd_port), *api_server_arguments]
        plane.processes.append(_start(directory, "kube-apiserver", arguments))
        _wait_until_ready(plane)
        if controllers:
            arguments = [*_controller_arguments(plane, controllers), *controller_manager_arguments]
            plane.processes.append(_start(directory, "kube-controller-manager", arguments))
        yield plane
    finally:
        for process in reversed(plane.processes):
            _stop(process)


def _etcd_arguments(directory: Path, port: int, peer_port: int) -> list[str]:
    return [
        "etcd",
        f"--data-dir={directory / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{port}",
        f"--advertise-client-urls=http://127.0.0.1:{port}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        "--unsafe-no-fsync",
        "--log-level=error",
    ]


def _apiserver_arguments(directory: Path, port: int, etcd_port: int) -> list[str]:
    return [
        str(layout.binary("kube-apiserver")),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        f"--cert-dir={directory}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--service-cluster-ip-range=10.99.0.0/16",
        f"--token-auth-file={directory / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        # A pod of the Job controller would wait for a ServiceAccount that no controller makes here.
        "--disable-admission-plugins=ServiceAccount",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={directory / 'service-account.key'}",
        f"--service-account-signing-key-file={directory / 'service-account.key'}",
    ]


def _controller_arguments(plane: ControlPlane, controllers: Sequence[str]) -> list[str]:
    return [
        str(layout.binary("kube-controller-manager")),
        f"--kubeconfig={plane.admin_kubeconfig}",
        f"--controllers={','.join(controllers)}",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=300",
        "--kube-api-burst=600",
    ]


def _write_credentials(plane: ControlPlane) -> None:
    (plane.directory / "tokens.csv").write_text(
        f"{ADMIN_TOKEN},admin,admin,system:masters\n"
        f'{OPERATOR_TOKEN},{OPERATOR_USER},operator,"system:serviceaccounts,system:serviceaccounts:finetune-system"\n'
    )
    key = plane.directory / "service-account.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    for path, token in ((plane.admin_kubeconfig, ADMIN_TOKEN), (plane.operator_kubeconfig, OPERATOR_TOKEN)):
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                    "clusters": [{"name": "test", "cluster": {"server": plane.url, "insecure-skip-tls-verify": True}}],
                    "users": [{"name": "test", "user": {"token": token}}],
                }
            )
        )


def _start(directory: Path, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    with (directory / f"{name}.log").open("wb") as log:
        environment = os.environ | {"GOMAXPROCS": "2"}
        return subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_ready(plane: ControlPlane) -> None:
    deadline = time.monotonic() + _START_SECONDS
    request = urllib.request.Request(f"{plane.url}/readyz", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    while True:
        try:
            with urllib.request.urlopen(request, context=_unverified(), timeout=2):
                return
        except OSError as error:
            ended = [process.args for process in plane.processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-2000:] for path in sorted(plane.directory.glob("*.log")))
                raise AssertionError(f"the control plane did not start ({error}); ended: {ended}\n{logs}") from error
            time.sleep(0.2)


def _unverified() -> SSLContext:
    context = create_default_context()
    context.check_hostname = False
    context.verify_mode = CERT_NONE
    return context


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 on which nobody listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports
