"""The chart as helm renders it with values of one's own."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cluster import layout
from tests.e2e.kubectl import Kubectl

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


ALL_OF_MONITORING = {
    name: {"enabled": True}
    for name in ("podMonitor", "serviceMonitor", "prometheusRule", "dashboards", "networkPolicy")
}


@pytest.mark.parametrize("values", [{}, NAMESPACES, {"podMonitor": {"enabled": True}}, ALL_OF_MONITORING])
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


def test_nothing_of_monitoring_is_made_unless_asked_for() -> None:
    kinds = {document["kind"] for document in rendered({})}
    assert not kinds & {"PodMonitor", "ServiceMonitor", "PrometheusRule", "NetworkPolicy"}
    assert not [found for found in rendered({}) if "grafana_dashboard" in found["metadata"].get("labels", {})]


def test_the_operator_is_scraped_once_where_both_kinds_of_monitors_are_asked_for() -> None:
    documents = rendered({"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}})
    (pods,) = of_kind(documents, "PodMonitor")
    assert pods["spec"]["selector"]["matchLabels"]["finetune.dev/stage"] == "train"
    (operator,) = of_kind(documents, "ServiceMonitor")
    (service,) = of_kind(documents, "Service")
    assert operator["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [endpoint["port"] for endpoint in operator["spec"]["endpoints"]] == [
        port["name"] for port in service["spec"]["ports"]
    ]


def test_grafanas_sidecar_finds_both_dashboards() -> None:
    values = {"dashboards": {"enabled": True, "annotations": {"grafana_folder": "Fine-tuning"}, "namespace": "grafana"}}
    config_maps = of_kind(rendered(values), "ConfigMap")
    titles = []
    for config_map in config_maps:
        metadata = config_map["metadata"]
        assert metadata["labels"]["grafana_dashboard"] == "1"
        assert (metadata["annotations"], metadata["namespace"]) == ({"grafana_folder": "Fine-tuning"}, "grafana")
        titles += [json.loads(text)["title"] for text in config_map["data"].values()]
    assert titles == ["Fine-tuning / Run", "Fine-tuning / Fleet"]


def test_an_alert_is_tuned_or_left_out_by_a_value() -> None:
    values = {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "runbookUrl": "https://docs.example/runbooks/",
        "alerts": {"stalled": {"for": "3m", "seconds": 60}, "gateNotMet": None},
    }
    (rule,) = of_kind(rendered({"prometheusRule": values}), "PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    alerts = {alert["alert"]: alert for group in rule["spec"]["groups"] for alert in group["rules"]}
    assert len(alerts) == 11
    assert "FineTuneGateNotMet" not in alerts
    stalled = alerts["FineTuneStalled"]
    assert stalled["for"] == "3m"
    assert stalled["expr"].endswith("> 60")
    assert stalled["annotations"]["runbook_url"] == "https://docs.example/runbooks/#finetunestalled"


def test_the_api_server_takes_the_network_policies(operator: Kubectl) -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    values = {"enabled": True, "metricsFrom": peers, "jobNamespaces": ["default"]}
    policies = of_kind(rendered({"networkPolicy": values}), "NetworkPolicy")
    assert len(policies) == 3
    for policy in policies:
        within = operator.within(policy["metadata"]["namespace"])
        within.run("create", "--dry-run=server", "--validate=strict", "--filename", "-", stdin=json.dumps(policy))


def test_only_those_who_are_named_may_read_metrics_besides_the_operator() -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    documents = rendered({"watchNamespaces": ["team-a"], "networkPolicy": {"enabled": True, "metricsFrom": peers}})
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(documents, "NetworkPolicy")}
    probes, metrics = policies["finetune-operator"]["ingress"]
    assert probes == {"ports": [{"port": "probes"}]}
    assert metrics == {"ports": [{"port": "metrics"}], "from": peers}
    gang, asked = policies["finetune-operator-train"]["ingress"]
    training_pods = policies["finetune-operator-train"]["podSelector"]
    assert gang == {"from": [{"podSelector": training_pods}]}
    assert asked["ports"] == [{"port": 9464}]
    operator, prometheus = asked["from"]
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "finetune-system"}
    assert prometheus == peers[0]
    assert "ingress" not in policies["finetune-operator-one-pod-stages"]


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
