"""A control plane for a test file, with the definition and the operator's role as the chart makes them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dev.cluster import layout
from tests.e2e.jobs import NETWORK_CLASS, SHARED_CLASS
from tests.e2e.kubectl import Kubectl, Manifest
from tests.integration.control_plane import ControlPlane, running_control_plane
from tests.integration.operator_process import OperatorProcess, running_operator

CHART = Path("helm/finetune-operator")
OPERATOR_NAMESPACE = "finetune-system"
_ROLE_KINDS = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An empty control plane: it does not know FineTuneJobs."""
    with running_control_plane(tmp_path_factory.mktemp("plane")) as control_plane:
        yield control_plane


@pytest.fixture(scope="module")
def kubectl(plane: ControlPlane) -> Kubectl:
    """kubectl as its administrator."""
    return Kubectl(layout.binary("kubectl"), plane.admin_kubeconfig)


def render_chart(*settings: str) -> list[Manifest]:
    """Return what the chart installs, with settings as `helm --set` takes them."""
    helm = [str(layout.binary("helm")), "template", "finetune-operator", str(CHART), "--namespace", OPERATOR_NAMESPACE]
    # Without a cluster to ask, helm has to be told which one it renders for.
    command = [*helm, "--kube-version", layout.KUBERNETES_VERSION, *(f"--set={setting}" for setting in settings)]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [document for document in yaml.safe_load_all(rendered) if document]


@pytest.fixture(scope="module")
def installed(kubectl: Kubectl) -> Kubectl:
    """The same with the definition and the operator's role, and storage whose claims wait for a pod on a node."""
    install(kubectl, render_chart())
    return kubectl


def install(kubectl: Kubectl, chart: list[Manifest]) -> None:
    """Apply what of the chart needs no node: the definition and the roles."""
    kinds = ("CustomResourceDefinition", *_ROLE_KINDS)
    for body in chart:
        if body["kind"] in kinds:
            kubectl.within(body["metadata"].get("namespace", "default")).apply(body)
    kubectl.apply(*(_storage_class(name) for name in (SHARED_CLASS, NETWORK_CLASS)))
    kubectl.run("wait", "crd", "finetunejobs.finetune.dev", "--for=condition=Established", "--timeout=30s")


def _storage_class(name: str) -> Manifest:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


@pytest.fixture(scope="module")
def operator(
    plane: ControlPlane, installed: Kubectl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """The operator as a process of this machine, for the tests of one file."""
    with running_operator(plane.operator_kubeconfig, tmp_path_factory.mktemp("operator")) as process:
        process.wait_until_ready()
        yield process
