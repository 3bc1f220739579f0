"""Cost and budget with the chart's own prices and permissions, on a real API server; the test plays the kubelet."""

import json
from pathlib import Path

import pytest

from tests.e2e.kubectl import Kubectl, Manifest
from tests.integration.conftest import install, render_chart
from tests.integration.control_plane import ControlPlane
from tests.integration.kubelet import Kubelet, bring_to
from tests.integration.operator_process import running_operator

pytestmark = pytest.mark.apiserver

# A process-hour costs 36,000 on such a node, so that a second of it costs 10.
PRICED = (
    "pricing.currency=USD",
    "pricing.gpuHour.default=3.60",
    "pricing.gpuHour.byNodeLabel[0].label=finetune.dev/kind",
    "pricing.gpuHour.byNodeLabel[0].value=costly",
    "pricing.gpuHour.byNodeLabel[0].price=36000",
)


def _environment(chart: list[Manifest]) -> dict[str, str]:
    (deployment,) = [body for body in chart if body["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"] if entry["name"] == "FINETUNE_PRICING"}


def _bind(kubectl: Kubectl, pod: Manifest, node: str) -> None:
    """Play the scheduler."""
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "namespace": namespace},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/binding"
    kubectl.run("create", "--raw", path, "--filename", "-", stdin=json.dumps(binding))


def test_a_job_is_charged_by_its_nodes_labels_and_suspended_when_its_budget_is_spent(
    plane: ControlPlane, kubectl: Kubectl, tmp_path: Path
) -> None:
    chart = render_chart(*PRICED)
    install(kubectl, chart)
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu-1", "labels": {"finetune.dev/kind": "costly"}}}
    )
    with running_operator(plane.operator_kubeconfig, tmp_path, _environment(chart)) as operator:
        operator.wait_until_ready()
        bring_to(kubectl, "dear", "starting", runPolicy={"budget": 40})
        for pod in Kubelet(kubectl, "dear").pods("finetune.dev/stage=train", 2):
            _bind(kubectl, pod, "gpu-1")
        Kubelet(kubectl, "dear").start_training(2)
        job = kubectl.wait_for_job("dear", lambda job: job.phase == "Running", timeout_seconds=20)
        assert job.status["accounting"]["cost"]["gpuHourPrice"] == "36000"
        # Two processes at 10 a second: spent after two seconds.
        kubectl.wait_for_job("dear", lambda job: job.phase == "Suspending", timeout_seconds=20)
        # No kubelet takes them down here.
        kubectl.run("delete", "pods", "--selector=finetune.dev/job=dear", "--force", "--grace-period=0")
        job = kubectl.wait_for_job("dear", lambda job: job.phase == "Suspended", timeout_seconds=20)
        assert job.status["reason"] == "BudgetSpent"
        assert float(job.status["accounting"]["cost"]["total"]) >= 40
        assert operator.samples()["finetune_operator_cost_total", "USD", kubectl.namespace, "starting"] > 0
        kubectl.run(
            *("patch", "finetunejob", "dear", "--type=merge", "--patch"), '{"spec": {"runPolicy": {"budget": 4000}}}'
        )
        kubectl.wait_for_job("dear", lambda job: job.phase == "Starting", timeout_seconds=20)
