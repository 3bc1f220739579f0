"""A node of the gang loses its power, and comes back."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from dev.cluster.layout import NODES, Node
from dev.cluster.nodes import ensure_containerd, ensure_node, is_ready
from dev.cluster.remains import crash
from tests.e2e.faults.expected import assert_as_undisturbed
from tests.e2e.faults.fault import JOB, PYTORCH_JOB, Fault
from tests.e2e.faults.host import processes_of
from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.outcome import Outcome
from tests.e2e.faults.run import Run, strike_together
from tests.e2e.faults.watch import Watch
from tests.e2e.kubectl import Kubectl, Manifest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

FAULTS = [Fault(f"node-lost-{backend.lower()}", "a node killed", backend=backend) for backend in (JOB, PYTORCH_JOB)]


@dataclass(frozen=True)
class Loss:
    """What became of the jobs that lost a node, and the pods that were on it."""

    outcomes: Sequence[Outcome]
    pods: Sequence[Manifest]


@pytest.fixture(scope="module")
def loss(operator: Kubectl, watch: Watch, alone: Matrix) -> Loss:
    """Two jobs, one of each back-end, that lose a node while they train; it is back when both train elsewhere."""
    assert alone
    node = _node_without_operator(operator)
    pods: list[Manifest] = []

    def lose_node_for_a_while(runs: Sequence[Run]) -> None:
        of_gangs = [run.training_pods() for run in runs]
        for gang in of_gangs:
            assert {pod["spec"]["nodeName"] for pod in gang} == {other.name for other in NODES}
        pods.extend(pod for gang in of_gangs for pod in gang if pod["spec"]["nodeName"] == node.name)
        crash(node)
        try:
            for run in runs:
                _require_second_attempt_elsewhere(run, node)
        finally:
            ensure_containerd(node)
            ensure_node(node, gpus=0)

    outcomes = strike_together(operator, watch, FAULTS, lose_node_for_a_while)
    for outcome in outcomes:
        outcome.keep()
    return Loss(outcomes, pods)


def _require_second_attempt_elsewhere(run: Run, lost: Node) -> None:
    run.wait_for_end_of_attempt(1)
    run.wait(
        "attempt 2 runs", lambda: len(run.job.status["attempts"]) == 2 and run.job.phase in ("Running", "Succeeded")
    )
    nodes = {pod["spec"]["nodeName"] for pod in run.training_pods()}
    assert lost.name not in nodes, f"attempt 2 runs on {nodes}, and {lost.name} is lost"


def _node_without_operator(operator: Kubectl) -> Node:
    (pod,) = operator.items("pods", "app.kubernetes.io/name=finetune-operator")
    return next(node for node in NODES if node.name != pod["spec"]["nodeName"])


@pytest.mark.parametrize("index", range(len(FAULTS)), ids=[fault.name for fault in FAULTS])
def test_a_gang_whose_node_dies_goes_on_elsewhere_before_the_node_is_back(
    index: int, loss: Loss, alone: Matrix
) -> None:
    outcome = loss.outcomes[index]
    assert_as_undisturbed(outcome, alone)
    # Ranks whose connections end tell of it at once; what the cluster says of the node comes later.
    assert outcome.reasons in (["CollectiveFailed", "Succeeded"], ["NodeLost", "Succeeded"])


def test_a_node_that_comes_back_runs_nothing_of_the_gangs_that_it_lost(loss: Loss) -> None:
    assert all(is_ready(node) for node in NODES)
    assert len(loss.pods) == len(FAULTS)
    assert [processes_of(pod) for pod in loss.pods] == [[], []]
