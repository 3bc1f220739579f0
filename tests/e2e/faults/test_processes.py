"""A process of a gang is killed."""

import pytest

from tests.e2e.faults.expected import assert_as_undisturbed
from tests.e2e.faults.fault import PYTORCH_JOB, Fault, disturbed_by
from tests.e2e.faults.host import agent_process, rank_process
from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.outcome import Outcome
from tests.e2e.faults.run import Run
from tests.e2e.faults.tiny import STEPS_A_CHECKPOINT
from tests.e2e.kubectl import Manifest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


def kill_rank(run: Run) -> None:
    process = rank_process(_worker(run))
    run.mark()
    process.kill()


def kill_agent(run: Run) -> None:
    process = agent_process(_worker(run))
    run.mark()
    process.kill()


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
