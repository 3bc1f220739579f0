"""The operator is killed, again and again, and replaced by another version, while a job runs."""

import random
import time
from contextlib import ExitStack

import pytest

from dev.cluster import layout
from dev.deploy import install_chart
from tests.e2e.faults.expected import assert_as_undisturbed
from tests.e2e.faults.fault import JOB, PYTORCH_JOB, Fault
from tests.e2e.faults.host import operator_process
from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.run import running
from tests.e2e.faults.tiny import STEPS_A_CHECKPOINT
from tests.e2e.faults.watch import Watch
from tests.e2e.kubectl import Kubectl, Manifest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

SEED = 20261127
NUM_KILLS = 10
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
    chance, phases = random.Random(SEED), []
    with running(operator, watch, KILLED) as run:
        run.mark()
        for _ in range(NUM_KILLS):
            phases.append(run.job.phase)
            kill_operator(operator)
            time.sleep(chance.uniform(0, LONGEST_LIFE_SECONDS))
        outcome = run.finish()
    print("killed in the phases", phases)
    outcome.keep()
    assert_as_undisturbed(outcome, alone)
    assert outcome.reasons == ["Succeeded"]
    assert outcome.job.status["result"]["export"]
    # On a quick machine the job may be done before the last of them.
    struck = [phase for phase in phases if phase != "Succeeded"]
    assert len(struck) >= NUM_KILLS // 2, phases
    assert len(set(struck)) >= 3, phases


def kill_operator(operator: Kubectl) -> None:
    """Kill the operator's process, and wait until another one is ready.

    Its pod is replaced: the kubelet would let a container that dies again and again wait for minutes.
    """
    (pod,) = operator.items("pods", OPERATOR)
    operator_process(pod).kill()
    operator.run("delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0")
    operator.wait_until("another operator is ready", lambda: _is_replaced(operator, pod), timeout_seconds=120)


def _is_replaced(operator: Kubectl, former: Manifest) -> bool:
    pods = operator.items("pods", OPERATOR)
    return [pod["metadata"]["uid"] != former["metadata"]["uid"] and _is_ready(pod) for pod in pods] == [True]


def _is_ready(pod: Manifest) -> bool:
    return any(
        (condition["type"], condition["status"]) == ("Ready", "True")
        for condition in pod.get("status", {}).get("conditions", [])
    )


def test_an_operator_that_is_upgraded_in_the_middle_of_a_run_changes_nothing_in_the_run(
    operator: Kubectl, chart_values: dict[str, str], watch: Watch, alone: Matrix
) -> None:
    helm, kubeconfig = layout.binary("helm"), operator.kubeconfig
    with ExitStack() as stack:
        runs = [stack.enter_context(running(operator, watch, fault)) for fault in UPGRADED]
        for run in runs:
            run.wait_for_checkpoint(STEPS_A_CHECKPOINT)
        (before,) = operator.items("pods", OPERATOR)
        for run in runs:
            run.mark()
        install_chart(helm, kubeconfig, chart_values | {"log.level": "DEBUG"})
        (after,) = operator.items("pods", OPERATOR)
        assert before["metadata"]["uid"] != after["metadata"]["uid"]
        outcomes = [run.finish() for run in runs]
    install_chart(helm, kubeconfig, chart_values)
    for outcome in outcomes:
        outcome.keep()
        assert_as_undisturbed(outcome, alone)
        assert outcome.reasons == ["Succeeded"]
