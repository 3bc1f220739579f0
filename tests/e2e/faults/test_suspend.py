"""Somebody needs the GPUs, again and again."""

import pytest

from tests.e2e.faults.expected import assert_as_undisturbed
from tests.e2e.faults.fault import PYTORCH_JOB, Fault, disturbed_by
from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.outcome import Outcome
from tests.e2e.faults.run import Run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

FIVE_TIMES = ("Preparing", "Starting", "Running", "Running", "Running")


def suspend_five_times(run: Run) -> None:
    for phase in FIVE_TIMES:
        suspend_in(run, phase)


def suspend_once(run: Run) -> None:
    suspend_in(run, "Running")


def suspend_in(run: Run, phase: str) -> None:
    """Suspend a job in a phase, and resume it as soon as it says that it is suspended."""
    done = run.last_step() if phase == "Running" and run.job.status.get("attempts") else 0
    run.wait_for_phase(phase)
    if phase == "Running":
        run.wait("a step more is done", lambda: run.last_step() > done)
    run.change({"suspend": True})
    run.wait("it is suspended", lambda: run.job.condition("Suspended")["status"] == "True")
    pods = run.training_pods()
    assert pods == [], f"it says that it is suspended, and has {[pod['metadata']['name'] for pod in pods]}"
    run.mark()
    run.change({"suspend": False})


@disturbed_by(
    Fault("suspended", "suspended and resumed five times", suspend_five_times),
    Fault("suspended-pytorch", "suspended and resumed", suspend_once, PYTORCH_JOB),
)
def test_a_job_that_is_suspended_and_resumed_does_no_step_twice(outcome: Outcome, matrix: Matrix) -> None:
    assert_as_undisturbed(outcome, matrix)
    assert outcome.reasons[-1] == "Succeeded"
    assert set(outcome.reasons[:-1]) == {"Suspended"}
    assert outcome.steps_lost == 0
    assert outcome.job.status.get("restarts", 0) == 0
