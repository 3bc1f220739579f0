"""The customer demo's script, with a real API server and operator; the test plays the kubelets and the trainer."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from dev import tour
from dev.cluster import layout
from dev.demo import Target
from tests.e2e.kubectl import Kubectl, Manifest, Refused
from tests.integration.conftest import install, render_chart
from tests.integration.control_plane import ControlPlane
from tests.integration.kubelet import POD_IP, Kubelet, telling
from tests.integration.operator_process import running_operator
from tests.unit.operator.kubernetes_objects import (
    EVALUATED_MESSAGE,
    TRAINED_MESSAGE,
    checkpoint,
    ended,
    failure_message,
    held_out,
    report,
    running,
)

pytestmark = pytest.mark.apiserver

# The first attempt loses a pod, the second is suspended for the budget, the third trains to the end.
_LAST_ATTEMPT = "3"


def _next_status(pod: Manifest, looks: dict[str, int]) -> dict[str, Any] | None:
    """Return what a kubelet would say of a pod next, or None when there is no news."""
    stage, name = pod["metadata"]["labels"]["finetune.dev/stage"], pod["metadata"]["name"]
    looks[name] = looks.get(name, 0) + 1
    phase = pod.get("status", {}).get("phase")
    if phase == "Running" and "deletionTimestamp" in pod["metadata"]:
        return ended(failure_message("Terminated", "was told to stop"), exit_code=143)
    if phase == "Pending":
        return running(POD_IP)
    if phase != "Running" or looks[name] < 8:
        return None
    if stage == "prepare":
        return ended(held_out(2))
    if stage == "evaluate":
        return ended(EVALUATED_MESSAGE)
    return ended(TRAINED_MESSAGE) if pod["metadata"]["labels"]["finetune.dev/attempt"] == _LAST_ATTEMPT else None


@contextmanager
def played_nodes(kubectl: Kubectl) -> Iterator[None]:
    """Play the kubelets of all nodes for the job of the demo, for as long as the block lasts."""
    stopped, kubelet, looks = Event(), Kubelet(kubectl, tour.NAME), dict[str, int]()

    def play() -> None:
        while not stopped.wait(0.3):
            for pod in kubectl.items("pods", f"finetune.dev/job={tour.NAME}"):
                status = _next_status(pod, looks)
                if status is not None:
                    with suppress(Refused):  # it was deleted meanwhile
                        kubelet.set_status(pod, status)

    thread = Thread(target=play)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def test_every_step_of_the_demo_comes_about(
    plane: ControlPlane,
    kubectl: Kubectl,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tour, "STEP_TIMEOUT_SECONDS", 120)
    chart = render_chart(*(f"{name}={value}" for name, value in tour.PRICES.items()))
    install(kubectl, chart)
    (deployment,) = [body for body in chart if body["kind"] == "Deployment"]
    settings = {
        entry["name"]: entry["value"] for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    progress = report(step=4, total_steps=18, loss=1.1, resumed_from_step=3, checkpoint=checkpoint(3))
    target = Target(layout.binary("kubectl"), layout.binary("helm"), plane.admin_kubeconfig, {})
    with (
        running_operator(
            plane.operator_kubeconfig, tmp_path, {"FINETUNE_PRICING": settings["FINETUNE_PRICING"]}
        ) as operator,
        played_nodes(kubectl),
        telling(progress),
    ):
        operator.wait_until_ready()
        tour.run(target, lambda _: "")
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("== ")] == [f"== {s.title}" for s in tour.STEPS]
    assert "Raise spec.runPolicy.budget to go on from the checkpoint of step 3." in said
    assert "functionAccuracy: 0.100 of the base, 0.900 of the tuned model" in said
