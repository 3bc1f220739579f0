"""A node of the gang loses its power, and comes back."""

from contextlib import ExitStack

import pytest

from dev.cluster.layout import NODES, Node
from dev.cluster.nodes import ensure_containerd, ensure_node, is_ready
from dev.cluster.remains import crash
from tests.e2e.faults.expected import assert_as_undisturbed
from tests.e2e.faults.fault import JOB, PYTORCH_JOB, Fault
from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.outcome import Outcome
from tests.e2e.faults.run import Run, running
from tests.e2e.faults.tiny import STEPS_A_CHECKPOINT
from tests.e2e.faults.watch import Watch
from tests.e2e.kubectl import Kubectl

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

FAULTS = [Fault(f"node-lost-{backend.lower()}", "a node killed", backend=backend) for backend in (JOB, PYTORCH_JOB)]


@pytest.fixture(scope="module")
def outcomes(operator: Kubectl, watch: Watch, matrix: Matrix) -> dict[str, Outcome]:
    """Two jobs, one of each back-end, that lose a node while they train; it is back when both train elsewhere."""
    for backend in (JOB, PYTORCH_JOB):
        matrix.undisturbed(backend)
    matrix.wait()
    node = _node_without_operator(operator)
    with ExitStack() as stack:
        runs = [stack.enter_context(running(operator, watch, fault)) for fault in FAULTS]
        for run in runs:
            run.wait_for_checkpoint(STEPS_A_CHECKPOINT)
        for run in runs:
            run.mark()
        crash(node)
        try:
            for run in runs:
                _require_second_attempt_elsewhere(run, node)
        finally:
            bring_back(node)
        return {run.fault.backend: run.finish() for run in runs}


def _require_second_attempt_elsewhere(run: Run, node: Node) -> None:
    run.wait_for_end_of_attempt(1)
    run.wait(
        "attempt 2 runs", lambda: len(run.job.status["attempts"]) == 2 and run.job.phase in ("Running", "Succeeded")
    )
    nodes = {pod["spec"]["nodeName"] for pod in run.training_pods()}
    assert node.name not in nodes, f"attempt 2 runs on {nodes}, and {node.name} is lost"


def _node_without_operator(operator: Kubectl) -> Node:
    (pod,) = operator.items("pods", "app.kubernetes.io/name=finetune-operator")
    return next(node for node in NODES if node.name != pod["spec"]["nodeName"])


def bring_back(node: Node) -> None:
    ensure_containerd(node)
    ensure_node(node, gpus=0)


@pytest.mark.parametrize("backend", [JOB, PYTORCH_JOB])
def test_a_gang_whose_node_dies_goes_on_elsewhere_before_the_node_is_back(
    backend: str, outcomes: dict[str, Outcome], matrix: Matrix
) -> None:
    outcome = outcomes[backend]
    outcome.keep()
    assert_as_undisturbed(outcome, matrix)
    assert outcome.reasons in (["NodeLost", "Succeeded"], ["CollectiveFailed", "Succeeded"])


def test_a_node_that_comes_back_runs_no_pod_of_the_gang_that_it_lost(
    outcomes: dict[str, Outcome], operator: Kubectl
) -> None:
    assert outcomes
    assert all(is_ready(node) for node in NODES)
    pods = operator.run("get", "pods", "--all-namespaces", "--selector=finetune.dev/stage=train", "--output=name")
    assert pods == ""
