"""The chart as helm renders it with values of one's own."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cluster import layout

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "finetune-operator"
NAMESPACES = {"watchNamespaces": ["team-a", "team-b"]}


def helm(*arguments: str, values: dict[str, Any] | None = None) -> "subprocess.CompletedProcess[str]":
    command = [str(layout.binary("helm")), *arguments, "--values", "-"]
    return subprocess.run(command, input=yaml.safe_dump(values or {}), capture_output=True, text=True, check=False)


def rendered(values: dict[str, Any], release: str = "finetune-operator") -> list[dict[str, Any]]:
    command = ("template", release, str(CHART), "--namespace", "finetune-system", "--kube-version", "1.34")
    finished = helm(*command, values=values)
    assert finished.returncode == 0, finished.stderr
    return [document for document in yaml.safe_load_all(finished.stdout) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def environment(documents: list[dict[str, Any]]) -> dict[str, str]:
    (deployment,) = of_kind(documents, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"]}


@pytest.mark.parametrize("values", [{}, NAMESPACES, {"podMonitor": {"enabled": True}}])
def test_helm_finds_nothing_wrong_with_the_chart(values: dict[str, Any]) -> None:
    finished = helm("lint", "--strict", str(CHART), values=values)
    assert finished.returncode == 0, finished.stdout


def test_with_namespaces_named_nothing_is_granted_in_the_cluster() -> None:
    documents = rendered(NAMESPACES)
    assert not of_kind(documents, "ClusterRole")
    assert not of_kind(documents, "ClusterRoleBinding")
    roles, bindings = of_kind(documents, "Role"), of_kind(documents, "RoleBinding")
    assert [role["metadata"]["namespace"] for role in roles] == ["team-a", "team-b"]
    assert [binding["metadata"]["namespace"] for binding in bindings] == ["team-a", "team-b"]
    assert {binding["subjects"][0]["namespace"] for binding in bindings} == {"finetune-system"}
    assert environment(documents)["FINETUNE_WATCHED_NAMESPACES"] == "team-a,team-b"


def test_a_role_grants_the_same_as_the_cluster_role() -> None:
    (cluster_role,) = (
        role for role in of_kind(rendered({}), "ClusterRole") if role["metadata"]["name"] == "finetune-operator"
    )
    for role in of_kind(rendered(NAMESPACES), "Role"):
        assert role["rules"] == cluster_role["rules"]


def test_the_memory_of_a_gpu_is_given_digit_by_digit() -> None:
    for written in (85899345920, "85899345920"):
        documents = rendered({"trainer": {"gpuMemoryBytes": written}})
        assert environment(documents)["FINETUNE_GPU_MEMORY_BYTES"] == "85899345920"


def test_pods_are_monitored_only_when_asked_for() -> None:
    assert not of_kind(rendered({}), "PodMonitor")
    monitors = of_kind(rendered({"podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}), "PodMonitor")
    assert len(monitors) == 2
    for monitor in monitors:
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]


def test_the_crd_can_be_left_to_somebody_else() -> None:
    assert len(of_kind(rendered({}), "CustomResourceDefinition")) == 1
    assert not of_kind(rendered({"crds": {"enabled": False}}), "CustomResourceDefinition")


def test_a_wrong_value_is_refused_by_helm() -> None:
    finished = helm("lint", str(CHART), values={"watchNamespace": ["team-a"]})
    assert finished.returncode != 0
    assert "watchNamespace" in finished.stdout + finished.stderr


@pytest.mark.parametrize("release", ["finetune-operator", "x", "a" * 53])
def test_names_fit_whatever_the_release_is_called(release: str) -> None:
    for document in rendered({}, release):
        assert len(document["metadata"]["name"]) <= 63
