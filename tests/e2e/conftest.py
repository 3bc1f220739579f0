"""The embedded cluster with the chart installed, and a namespace of its own for each test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from dev.cluster import layout
from dev.cluster.image_build import OPERATOR, TRAINER
from dev.deploy import install_chart
from dev.mirror import ensure_mirror
from tests.e2e.kubectl import Kubectl, fresh_namespace


@pytest.fixture(scope="session")
def cluster() -> Kubectl:
    """kubectl for the embedded cluster, or for the cluster of KUBECONFIG."""
    kubeconfig = Path(os.environ.get("KUBECONFIG") or layout.KUBECONFIG)
    kubectl = Kubectl(layout.binary("kubectl"), kubeconfig)
    kubectl.run("get", "nodes")
    return kubectl


@pytest.fixture(scope="session")
def turn(tmp_path_factory: pytest.TempPathFactory) -> FileLock:
    """Held by one process at a time of those that run tests side by side."""
    return FileLock(tmp_path_factory.getbasetemp().parent / "turn.lock")


@pytest.fixture(scope="session")
def hub_endpoint(turn: FileLock) -> str:
    """A mirror of the Hub that pods can reach."""
    with turn:
        return ensure_mirror()


@pytest.fixture(scope="session")
def chart_values(hub_endpoint: str) -> dict[str, str]:
    """What the chart is told about this cluster."""
    return {
        "image": OPERATOR.reference(),
        "trainer.image": TRAINER.reference(),
        "trainer.hubEndpoint": hub_endpoint,
        "trainer.prepare.cpu": "100m",
        "trainer.prepare.memory": "512Mi",
        "progressIntervalSeconds": "2",
        "pricing.currency": "USD",
        "pricing.gpuHour.default": "3.60",  # a process counts as a GPU
        # A minute each by default, which is longer than a test should wait for a lost node.
        "trainer.unreachableNodeSeconds": "15",
        "trainer.forceDeleteSeconds": "15",
    }


@pytest.fixture(scope="session")
def operator(cluster: Kubectl, chart_values: dict[str, str], turn: FileLock) -> Kubectl:
    """The chart, installed as a person installs it; kubectl in the operator's namespace."""
    with turn:  # helm refuses two at once; to install the same again changes no pod
        install_chart(layout.binary("helm"), cluster.kubeconfig, chart_values)
    return cluster.within("finetune-system")


@pytest.fixture
def namespace(operator: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a fresh namespace of a cluster with the operator."""
    with fresh_namespace(operator) as kubectl:
        yield kubectl


@pytest.fixture(scope="module")
def module_namespace(operator: Kubectl) -> Iterator[Kubectl]:
    """The same for tests that look at one run from several sides."""
    with fresh_namespace(operator) as kubectl:
        yield kubectl
