"""`kubectl finetune` against a real API server, with the operator and without nodes: whatever needs no running pod.

One control plane and one operator for all files of this folder, in each process of pytest; each test has a namespace of
its own.
"""

import uuid
from collections.abc import Iterator

import pytest

from dev.cluster import layout
from tests.command_line import CommandLine
from tests.e2e.kubectl import Kubectl
from tests.integration.conftest import install, render_chart
from tests.integration.control_plane import CONTROLLERS, ControlPlane, running_control_plane
from tests.integration.operator_process import OperatorProcess, running_operator


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane that puts the rules of labelled roles into `edit` and `view`, as every cluster does."""
    controllers = (*CONTROLLERS, "clusterrole-aggregation-controller")
    with running_control_plane(tmp_path_factory.mktemp("plane"), controllers) as control_plane:
        yield control_plane


@pytest.fixture(scope="session")
def operator(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """The operator, installed as the chart does it."""
    install(Kubectl(layout.binary("kubectl"), plane.admin_kubeconfig), render_chart())
    with running_operator(plane.operator_kubeconfig, tmp_path_factory.mktemp("operator")) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(scope="session")
def kubectl(plane: ControlPlane, operator: OperatorProcess) -> Kubectl:
    """kubectl of the administrator of a cluster in which the operator runs."""
    return Kubectl(layout.binary("kubectl"), plane.admin_kubeconfig)


@pytest.fixture
def namespace(kubectl: Kubectl) -> Kubectl:
    name = f"cli-{uuid.uuid4().hex[:8]}"
    kubectl.run("create", "namespace", name)
    return kubectl.within(name)


@pytest.fixture
def cli(plane: ControlPlane, namespace: Kubectl) -> CommandLine:
    return CommandLine(plane.admin_kubeconfig, namespace.namespace)
