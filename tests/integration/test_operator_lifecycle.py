"""The operator's process: how it starts, waits, tells what is missing, and stops."""

import time
from pathlib import Path

import pytest

from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl
from tests.integration.control_plane import ControlPlane
from tests.integration.operator_process import running_operator

pytestmark = pytest.mark.apiserver


def _wait_for_words(operator_log: Path, words: str) -> None:
    deadline = time.monotonic() + 20
    while words not in operator_log.read_text():
        assert time.monotonic() < deadline, operator_log.read_text()
        time.sleep(0.1)


def test_without_permissions_it_waits_and_names_the_one_that_is_missing(plane: ControlPlane, tmp_path: Path) -> None:
    with running_operator(plane.operator_kubeconfig, tmp_path) as operator:
        _wait_for_words(operator.log, "Waiting: list finetunejobs in all namespaces is not permitted")
        code, words = operator.readiness()
        assert code == 503
        assert 'cannot list resource "finetunejobs" in API group "finetune.dev"' in words


def test_without_the_definition_it_waits_says_how_to_install_it_and_starts_when_it_is_there(
    plane: ControlPlane, kubectl: Kubectl, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with running_operator(plane.admin_kubeconfig, tmp_path) as operator:
        _wait_for_words(operator.log, "kubectl apply -f crds/finetunejobs.yaml")
        assert operator.readiness()[0] == 503
        request.getfixturevalue("installed")
        operator.wait_until_ready()


def test_it_stops_within_seconds_and_without_an_error(plane: ControlPlane, installed: Kubectl, tmp_path: Path) -> None:
    with running_operator(plane.operator_kubeconfig, tmp_path) as operator:
        operator.wait_until_ready()
        installed.apply(tiny_job("in-the-middle"))
        installed.wait_for_job("in-the-middle", lambda job: job.phase == "Preparing")
        started = time.monotonic()
        assert operator.stop() == 0
        assert time.monotonic() - started < 2
        log = operator.log.read_text()
        assert "Traceback" not in log
        assert '"level": "ERROR"' not in log


def test_it_outlives_an_api_server_that_it_cannot_reach_at_first(tmp_path: Path, plane: ControlPlane) -> None:
    nowhere = tmp_path / "nowhere.kubeconfig"
    nowhere.write_text(plane.admin_kubeconfig.read_text().replace(plane.url, "https://127.0.0.1:9"))
    with running_operator(nowhere, tmp_path) as operator:
        _wait_for_words(operator.log, "the API server did not answer")
        assert operator.readiness()[0] == 503
        assert operator.process.poll() is None


def test_it_goes_on_where_it_was_after_the_api_server_was_away(
    plane: ControlPlane, installed: Kubectl, tmp_path: Path
) -> None:
    with running_operator(plane.operator_kubeconfig, tmp_path) as operator:
        operator.wait_until_ready()
        installed.apply(tiny_job("before"))
        installed.wait_for_job("before", lambda job: job.phase == "Preparing")
        plane.stop_api_server()
        time.sleep(3)
        plane.start_api_server()
        assert operator.process.poll() is None
        installed.apply(tiny_job("after"))
        installed.wait_for_job("after", lambda job: job.phase == "Preparing", timeout_seconds=60)
        assert len(installed.items("jobs", "finetune.dev/job=before")) == 1


def test_it_ends_with_a_sentence_when_the_definition_is_removed(
    plane: ControlPlane, installed: Kubectl, tmp_path: Path
) -> None:
    with running_operator(plane.operator_kubeconfig, tmp_path, {"FINETUNE_RESYNC_INTERVAL_SECONDS": "0.5"}) as operator:
        operator.wait_until_ready()
        installed.run("delete", "crd", "finetunejobs.finetune.dev")
        assert operator.process.wait(timeout=20) == 1
        assert "It was there when the operator started" in operator.log.read_text()
