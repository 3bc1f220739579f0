"""The embedded cluster with the chart installed, and a namespace of its own for each test."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from dev.cluster import layout
from dev.cluster.images import image_references
from dev.deploy import install_chart
from dev.mirror import ensure_mirror

from tests.e2e.kubectl import Kubectl, Refused


@pytest.fixture(scope="session")
def cluster() -> Kubectl:
    """kubectl for the embedded cluster, or for the cluster of KUBECONFIG."""
    kubeconfig = Path(os.environ.get("KUBECONFIG") or layout.KUBECONFIG)
    kubectl = Kubectl(layout.binary("kubectl"), kubeconfig)
    kubectl.run("get", "nodes")
    return kubectl


@pytest.fixture(scope="session")
def hub_endpoint() -> str:
    """A mirror of the Hub that pods can reach."""
    return ensure_mirror()


@pytest.fixture(scope="session")
def operator(cluster: Kubectl, hub_endpoint: str) -> Kubectl:
    """The chart, installed as a person installs it; kubectl in the operator's namespace."""
    images = image_references()
    values = {"image": images["operator"], "trainer.image": images["trainer"], "trainer.hubEndpoint": hub_endpoint}
    install_chart(layout.binary("helm"), cluster.kubeconfig, values)
    return cluster.within("finetune-system")


@pytest.fixture
def namespace(cluster: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a fresh namespace that admits only pods of the `restricted` Pod Security Standard."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    kubectl = cluster.within(name)
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }
    )
    yield kubectl
    try:
        kubectl.run("delete", "namespace", name, "--wait=false")
    except Refused as refused:
        pytest.fail(f"namespace {name} was not deleted: {refused}")
