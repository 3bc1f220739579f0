"""A process of a gang dies, is starved of memory, or stands still."""

from typing import Any

import pytest

from tests.e2e.faults.expected import assert_as_undisturbed, assert_one_gang_told_of_and_nothing_left
from tests.e2e.faults.fault import PYTORCH_JOB, Fault, disturbed_by
from tests.e2e.faults.host import agent_process, rank_process
from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.outcome import Outcome
from tests.e2e.faults.run import Run
from tests.e2e.faults.tiny import GRACE_SECONDS, STEPS_A_CHECKPOINT, TOTAL_STEPS
from tests.e2e.jobs import ONE_THREAD
from tests.e2e.kubectl import Manifest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

STALL_TIMEOUT_SECONDS = 5
MEMORY_LIMIT_MIB = 2048
# More than Python, and less than Python with torch.
TOO_LITTLE_MEMORY_MIB = 100


def kill_rank(run: Run) -> None:
    process = rank_process(_worker(run))
    run.mark()
    process.kill()


def kill_agent(run: Run) -> None:
    process = agent_process(_worker(run))
    run.mark()
    process.kill()


def eat_memory(run: Run) -> None:
    """Use up the memory of a container, so that the kernel kills the process that trains.

    The process is frozen first: a training so short may be done before the memory is used up.
    """
    process = rank_process(_worker(run))
    process.freeze()
    run.mark()
    with process.eat_memory_beside() as eater:
        try:
            run.wait("the kernel kills the process that trains", lambda: not process.is_alive(), timeout_seconds=60)
        finally:
            eater.kill()


def freeze_rank(run: Run) -> None:
    """Freeze a process, and let the operator be patient again as soon as it has noticed."""
    process = rank_process(_worker(run))
    process.freeze()
    run.mark()
    run.change({"runPolicy": {"stallTimeoutSeconds": STALL_TIMEOUT_SECONDS}})
    run.wait_for_end_of_attempt(1)
    run.change({"runPolicy": {"stallTimeoutSeconds": 1800}})


def limited_to(memory_mib: int) -> dict[str, Any]:
    return {"compute__resources": ONE_THREAD | {"limits": ONE_THREAD["limits"] | {"memory": f"{memory_mib}Mi"}}}


def _worker(run: Run) -> Manifest:
    run.wait_for_checkpoint(STEPS_A_CHECKPOINT)
    return run.training_pods()[1]


@disturbed_by(
    Fault("rank-killed", "`kill -9` of a rank", kill_rank),
    Fault("rank-killed-pytorch", "`kill -9` of a rank", kill_rank, PYTORCH_JOB),
    Fault("agent-killed", "`kill -9` of an agent", kill_agent),
)
def test_a_killed_process_costs_the_steps_since_the_last_checkpoint(outcome: Outcome, matrix: Matrix) -> None:
    assert_as_undisturbed(outcome, matrix)
    assert outcome.reasons == ["Killed", "Succeeded"]
    assert outcome.attempts[1]["resumedFromStep"] >= STEPS_A_CHECKPOINT
    # One checkpoint may have been under way.
    assert outcome.steps_lost < 2 * STEPS_A_CHECKPOINT


@disturbed_by(
    Fault(
        "memory-eaten",
        f"host memory used up ({MEMORY_LIMIT_MIB} MiB)",
        eat_memory,
        spec=limited_to(MEMORY_LIMIT_MIB),
    )
)
def test_a_pod_whose_memory_ran_out_once_goes_on_from_its_last_checkpoint(outcome: Outcome, matrix: Matrix) -> None:
    assert_as_undisturbed(outcome, matrix)
    assert outcome.reasons == ["OOMKilled", "Succeeded"]


@disturbed_by(
    Fault(
        "memory-too-small",
        "memory limit too small for the trainer",
        spec=limited_to(TOO_LITTLE_MEMORY_MIB)
        | {"runPolicy": {"maxRestarts": 1, "terminationGracePeriodSeconds": GRACE_SECONDS}},
    )
)
def test_a_pod_whose_memory_never_suffices_fails_and_says_what_to_raise(outcome: Outcome) -> None:
    assert_one_gang_told_of_and_nothing_left(outcome)
    assert outcome.job.phase == "Failed"
    assert outcome.reasons == ["OOMKilled", "OOMKilled"]
    message = outcome.job.condition("Failed")["message"]
    assert "spec.compute.resources" in message
    assert "spec.runPolicy.maxRestarts" in message


@disturbed_by(Fault("rank-frozen", "a rank frozen with SIGSTOP", freeze_rank))
def test_a_gang_that_hangs_is_taken_down_and_goes_on_from_its_last_checkpoint(outcome: Outcome, matrix: Matrix) -> None:
    assert_as_undisturbed(outcome, matrix)
    assert outcome.reasons == ["Stalled", "Succeeded"]
    assert f"/{TOTAL_STEPS} steps are done" in outcome.attempts[0]["message"]
