"""A cluster without machines: a real control plane, and nodes whose pods run only in the API server's books.

kwok writes what kubelets would write. The controller-manager and the scheduler get far more requests a second than
they allow themselves by default, or their own limits would be what is measured.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from benchmarks.operator.scale.isolation import POD_NETWORK

from dev.cluster import layout
from tests.e2e.kubectl import Kubectl
from tests.integration.conftest import install, render_chart
from tests.integration.control_plane import ControlPlane, running_control_plane
from tests.unit.operator.kubernetes_objects import PREPARED_MESSAGE

NAMESPACE = "scale"
CLAIM = "shared-filesystem"
_NUM_NODES = 20
# These nodes are never lost: nobody has to send heartbeats, and nobody to wait for them.
_CONTROLLERS = ("*", "-node-lifecycle-controller")
_NOT_READY_TAINT = "node.kubernetes.io/not-ready"
_NODE_AMOUNTS = {"cpu": "100k", "memory": "1Pi", "pods": "1M", "nvidia.com/gpu": "100k"}
# NB: etcd before 3.4.25, which Debian 12 has, cannot stream a list, and the API server takes each watch from version 0,
# which is how kwok watches, for a wish to have one. It refuses, and kwok would see pods up to half a minute late.
_API_SERVER_ARGUMENTS = ("--feature-gates=WatchList=false",)
# By default five: whoever makes a thousand Jobs at once would wait for that.
_CONTROLLER_MANAGER_ARGUMENTS = ("--concurrent-job-syncs=16",)
_CLIENT_LIMITS = ("--kube-api-qps=300", "--kube-api-burst=600")
_SHARED = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
_STAGES = Path(__file__).with_name("fake_nodes.yaml")


@dataclass(frozen=True)
class FakeCluster:
    """Where it is, and which processes it is made of."""

    plane: ControlPlane
    kubectl: Kubectl
    processes: dict[str, int]
    """Process ids by program."""


@contextlib.contextmanager
def running_fake_cluster(directory: Path) -> Iterator[FakeCluster]:
    """Run a control plane and fake nodes for as long as the block lasts, with the operator's definition and roles."""
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(
            running_control_plane(directory, _CONTROLLERS, _API_SERVER_ARGUMENTS, _CONTROLLER_MANAGER_ARGUMENTS)
        )
        kubectl = Kubectl(layout.binary("kubectl"), plane.admin_kubeconfig)
        install(kubectl, render_chart())
        kubectl.apply(*(_node(index) for index in range(_NUM_NODES)), *_namespace_and_volume())
        # Every new node has this taint, and the controller that takes it away is off.
        kubectl.run("taint", "nodes", "--all", f"{_NOT_READY_TAINT}-")
        kubectl = kubectl.within(NAMESPACE)
        kubectl.apply(_claim())
        # It is bound when its controller comes round, or the first job would be measured waiting for that.
        kubectl.run("wait", f"pvc/{CLAIM}", "--for=jsonpath={.status.phase}=Bound", "--timeout=60s")
        processes = dict(zip(("etcd", "kube-apiserver", "kube-controller-manager"), plane.processes, strict=True))
        scheduler = running_process(directory, "kube-scheduler", _scheduler_arguments(plane))
        kwok = running_process(directory, "kwok", _kwok_arguments(plane))
        processes |= {"kube-scheduler": stack.enter_context(scheduler), "kwok": stack.enter_context(kwok)}
        yield FakeCluster(plane, kubectl, {name: process.pid for name, process in processes.items()})


@contextlib.contextmanager
def running_process(directory: Path, name: str, arguments: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for as long as the block lasts; its log is `name`.log in the directory."""
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _scheduler_arguments(plane: ControlPlane) -> list[str]:
    program = str(layout.binary("kube-scheduler"))
    return [program, f"--kubeconfig={plane.admin_kubeconfig}", "--leader-elect=false", *_CLIENT_LIMITS]


def _kwok_arguments(plane: ControlPlane) -> list[str]:
    # As JSON twice over: the report as text, and that text as a YAML string.
    prepared = json.dumps(json.dumps(PREPARED_MESSAGE))
    configuration = plane.directory / "kwok.yaml"
    configuration.write_text(Template(_STAGES.read_text()).safe_substitute(PREPARED=prepared))
    program = str(layout.binary("kwok"))
    return [program, f"--kubeconfig={plane.admin_kubeconfig}", f"--config={configuration}", f"--cidr={POD_NETWORK}"]


def _node(index: int) -> dict[str, Any]:
    name = f"fake-{index}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": _NODE_AMOUNTS, "capacity": _NODE_AMOUNTS},
    }


def _namespace_and_volume() -> tuple[dict[str, Any], ...]:
    """Return the namespace of the jobs, and a volume that nothing mounts."""
    volume = _SHARED | {"capacity": {"storage": "1Pi"}, "nfs": {"server": "nfs.invalid", "path": "/"}}
    return (
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": CLAIM}, "spec": volume},
    )


def _claim() -> dict[str, Any]:
    """Return the claim on the shared filesystem that all jobs use."""
    spec = _SHARED | {"resources": {"requests": {"storage": "1Pi"}}, "volumeName": CLAIM}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec}
