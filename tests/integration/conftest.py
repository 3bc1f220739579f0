"""A control plane for a test file, with the definition and the operator's role as the chart makes them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dev.cluster import layout
from tests.e2e.jobs import NETWORK_CLASS, SHARED_CLASS
from tests.e2e.kubectl import Kubectl
from tests.integration.control_plane import ControlPlane, running_control_plane

CHART = Path("helm/finetune-operator")
OPERATOR_NAMESPACE = "finetune-system"
_ROLE_KINDS = ("ClusterRole", "ClusterRoleBinding")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An empty control plane: it does not know FineTuneJobs."""
    with running_control_plane(tmp_path_factory.mktemp("plane")) as control_plane:
        yield control_plane


@pytest.fixture(scope="module")
def kubectl(plane: ControlPlane) -> Kubectl:
    """kubectl as its administrator."""
    return Kubectl(layout.binary("kubectl"), plane.admin_kubeconfig)


@pytest.fixture(scope="session")
def chart_manifests() -> list[dict[str, object]]:
    """What the chart installs with its defaults."""
    helm = [str(layout.binary("helm")), "template", "finetune-operator", str(CHART), "--namespace", OPERATOR_NAMESPACE]
    # Without a cluster to ask, helm has to be told which one it renders for.
    command = [*helm, "--kube-version", layout.KUBERNETES_VERSION]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [document for document in yaml.safe_load_all(rendered) if document]


@pytest.fixture(scope="module")
def installed(kubectl: Kubectl, chart_manifests: list[dict[str, object]]) -> Kubectl:
    """The same with the definition and the operator's role, and storage whose claims wait for a pod on a node."""
    definition = next(body for body in chart_manifests if body["kind"] == "CustomResourceDefinition")
    roles = [body for body in chart_manifests if body["kind"] in _ROLE_KINDS]
    kubectl.apply(definition, *roles, *(_storage_class(name) for name in (SHARED_CLASS, NETWORK_CLASS)))
    kubectl.run("wait", "crd", "finetunejobs.finetune.dev", "--for=condition=Established", "--timeout=30s")
    return kubectl


def _storage_class(name: str) -> dict[str, object]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
