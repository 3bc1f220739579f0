"""The shared filesystem is full, or gives back something else than what was written to it."""

import pytest

from tests.e2e.faults.expected import assert_as_undisturbed, assert_one_gang_told_of_and_nothing_left
from tests.e2e.faults.fault import Fault, disturbed_by
from tests.e2e.faults.host import rank_process
from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.outcome import Outcome
from tests.e2e.faults.run import Run
from tests.e2e.faults.tiny import STEPS_A_CHECKPOINT
from tests.e2e.faults.volume import CLAIM, SmallVolume, small_volume

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

ON_SMALL_VOLUME = {"storage": {"shared": {"claimName": CLAIM}}}


def fill_volume(run: Run) -> None:
    run.wait_for_checkpoint(STEPS_A_CHECKPOINT)
    run.mark()
    SmallVolume(run.kubectl).fill()


def fill_volume_for_a_while(run: Run) -> None:
    fill_volume(run)
    run.wait_for_end_of_attempt(1)
    SmallVolume(run.kubectl).clear()


def damage_newest_checkpoint(run: Run) -> None:
    """Kill rank 0, so that no checkpoint is under way any more, and change one byte of the newest."""
    run.wait_for_checkpoint(2 * STEPS_A_CHECKPOINT)
    process = rank_process(run.training_pods()[0])
    run.mark()
    process.kill()
    run.wait_for_end_of_attempt(1)
    path = run.paths.checkpoints / f"step-{run.newest_checkpoint()}" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@disturbed_by(
    Fault(
        "disk-full-a-while",
        "disk of the claim full, and cleared",
        fill_volume_for_a_while,
        spec=ON_SMALL_VOLUME,
        surroundings=small_volume,
    )
)
def test_a_job_whose_disk_was_full_for_a_while_goes_on(outcome: Outcome, matrix: Matrix) -> None:
    assert_as_undisturbed(outcome, matrix)
    assert outcome.reasons == ["StorageFull", "Succeeded"]


@disturbed_by(
    Fault("disk-full", "disk of the claim full", fill_volume, spec=ON_SMALL_VOLUME, surroundings=small_volume)
)
def test_a_job_whose_disk_stays_full_is_tried_once_more_and_fails_with_its_checkpoint_kept(outcome: Outcome) -> None:
    assert_one_gang_told_of_and_nothing_left(outcome)
    assert outcome.job.phase == "Failed"
    assert outcome.reasons == ["StorageFull", "StorageFull"]
    message = outcome.job.condition("Failed")["message"]
    assert "Make the volume larger" in message
    assert f"The checkpoint of step {outcome.job.status['checkpoint']['step']} is kept" in message


@disturbed_by(Fault("checkpoint-damaged", "newest checkpoint damaged", damage_newest_checkpoint))
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_used(outcome: Outcome, matrix: Matrix) -> None:
    assert_as_undisturbed(outcome, matrix)
    assert outcome.reasons == ["Killed", "Succeeded"]
    (damaged,) = outcome.job.status["damagedCheckpoints"]
    assert "optimizer.safetensors" in damaged
    assert any(event.startswith("CheckpointCorrupt:") for event in outcome.events)
    assert outcome.attempts[1]["resumedFromStep"] >= STEPS_A_CHECKPOINT
    assert outcome.attempts[1]["resumedFromStep"] % STEPS_A_CHECKPOINT == 0
    assert outcome.steps_lost >= STEPS_A_CHECKPOINT
