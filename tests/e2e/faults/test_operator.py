"""The operator is killed, again and again, and replaced by another version, while a job runs."""

import random
import time

import pytest

from dev.cluster import layout
from dev.deploy import install_chart
from tests.e2e.faults.expected import assert_as_undisturbed
from tests.e2e.faults.fault import JOB, PYTORCH_JOB, Fault
from tests.e2e.faults.host import Process, operator_process, rank_process
from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.run import Run, running, strike_together
from tests.e2e.faults.tiny import TOTAL_STEPS
from tests.e2e.faults.watch import Watch
from tests.e2e.kubectl import Kubectl

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

SEED = 20261127
NUM_KILLS = 10
# The training stands still until so many of them have struck: without that it would be done before on a quick machine.
KILLS_UNTIL_IT_GOES_ON = 8
LONGEST_LIFE_SECONDS = 2.0
OPERATOR = "app.kubernetes.io/name=finetune-operator"

# Exporting is a stage of its own, after the training, and changes nothing in the adapter.
KILLED = Fault("operator-killed", f"the operator killed {NUM_KILLS} times", spec={"export": {"merged": True}})
UPGRADED = [
    Fault(f"operator-upgraded-{backend.lower()}", "the operator upgraded", backend=backend)
    for backend in (JOB, PYTORCH_JOB)
]


def test_an_operator_that_is_killed_ten_times_brings_a_job_to_its_end_all_the_same(
    operator: Kubectl, watch: Watch, alone: Matrix
) -> None:
    chance = random.Random(SEED)
    phases: list[str] = []
    held: Process | None = None
    with running(operator, watch, KILLED) as run:
        while run.job.phase not in ("Succeeded", "Failed"):
            if held is None and len(phases) < KILLS_UNTIL_IT_GOES_ON and _trains(run):
                held = rank_process(run.training_pods()[0])
                held.freeze()
            _kill_operator(operator, chance.uniform(0, LONGEST_LIFE_SECONDS), once_ready=len(phases) % 2 == 0)
            phases.append(run.job.phase)
            if held is not None and len(phases) == KILLS_UNTIL_IT_GOES_ON:
                held.thaw()
        outcome = run.finish()
    outcome.keep()
    assert_as_undisturbed(outcome, alone)
    assert outcome.reasons == ["Succeeded"]
    assert outcome.job.status["result"]["export"]
    assert len(phases) >= NUM_KILLS, phases
    assert len(set(phases) - {"Succeeded"}) >= 3, phases


def _trains(run: Run) -> bool:
    return run.job.phase in ("Starting", "Running") and 0 < run.last_step() < TOTAL_STEPS // 2


def _kill_operator(operator: Kubectl, life_seconds: float, *, once_ready: bool) -> None:
    """Kill the operator's process so long after it began to run or was ready, and have its pod replaced.

    The kubelet would let a container that dies again and again wait for minutes.
    """
    operator.wait_until("an operator begins", lambda: len(operator.items("pods", OPERATOR)) == 1, timeout_seconds=120)
    (pod,) = operator.items("pods", OPERATOR)
    name = pod["metadata"]["name"]
    process = operator_process(pod)
    if once_ready:
        operator.run("wait", "pod", name, "--for=condition=Ready", "--timeout=120s", timeout_seconds=130)
    time.sleep(life_seconds)
    process.kill()
    operator.run("delete", "pod", name, "--force", "--grace-period=0")


def test_an_operator_that_is_upgraded_in_the_middle_of_a_run_changes_nothing_in_the_run(
    operator: Kubectl, chart_values: dict[str, str], watch: Watch, alone: Matrix
) -> None:
    def upgrade() -> None:
        (before,) = operator.items("pods", OPERATOR)
        _install(operator, chart_values | {"log.level": "DEBUG"})
        (after,) = operator.items("pods", OPERATOR)
        assert before["metadata"]["uid"] != after["metadata"]["uid"]

    try:
        outcomes = strike_together(operator, watch, UPGRADED, lambda _: upgrade())
    finally:
        _install(operator, chart_values)
    for outcome in outcomes:
        outcome.keep()
        assert_as_undisturbed(outcome, alone)
        assert outcome.reasons == ["Succeeded"]


def _install(operator: Kubectl, values: dict[str, str]) -> None:
    install_chart(layout.binary("helm"), operator.kubeconfig, values)
