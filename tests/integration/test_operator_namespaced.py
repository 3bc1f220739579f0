"""An operator that may see some namespaces only: installed with Roles and no ClusterRole."""

from pathlib import Path
from time import sleep

import pytest

from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl
from tests.integration.conftest import install, render_chart
from tests.integration.control_plane import ControlPlane
from tests.integration.kubelet import PREPARE, Kubelet
from tests.integration.operator_process import running_operator

pytestmark = pytest.mark.apiserver


def test_it_works_in_the_namespaces_that_it_was_given_and_leaves_the_others_alone(
    plane: ControlPlane, kubectl: Kubectl, tmp_path: Path
) -> None:
    for name in ("team-a", "team-b", "team-c"):
        kubectl.run("create", "namespace", name)
    chart = render_chart("watchNamespaces={team-a,team-b}")
    assert not [body for body in chart if body["kind"] == "ClusterRoleBinding"]
    install(kubectl, chart)
    with running_operator(
        plane.operator_kubeconfig, tmp_path, {"FINETUNE_WATCHED_NAMESPACES": "team-a,team-b"}
    ) as operator:
        operator.wait_until_ready()
        for name in ("team-a", "team-b", "team-c"):
            kubectl.within(name).apply(tiny_job("calls"))
        for name in ("team-a", "team-b"):
            Kubelet(kubectl.within(name), "calls").pods(PREPARE, 1)
        sleep(1)
        assert kubectl.within("team-c").job("calls").status == {}
        assert "forbidden" not in operator.log.read_text()
