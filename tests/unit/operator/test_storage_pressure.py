"""A filesystem that will be full before the training is done is told of in time, and once."""

from typing import Any

import pytest

from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.decide.storage import ADAPTER_BYTES, CHECKPOINT_BYTES, what_is_needed
from finetune_trainer.contract.progress import CheckpointReport, FilesystemReport
from finetune_trainer.contract.termination import PreparedReport
from finetune_trainer.planner import memory
from tests.factories import make_job
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import TRAIN, World

MEBIBYTE, GIBIBYTE = 1 << 20, 1 << 30
# A checkpoint of 100 MiB after each ten of 30 steps, two of which are kept; the adapter is a third of a checkpoint.
SPEC = {"checkpoint": {"everySteps": 10, "keep": 2}}
ADAPTER_PARAMETERS = 100 * MEBIBYTE // 12
RESERVE_MIB = 64


def _filesystem(free_mib: float, name: str = "shared") -> FilesystemReport:
    return FilesystemReport(name=name, size_bytes=100 * GIBIBYTE, free_bytes=int(free_mib * MEBIBYTE))


def _checkpoint(step: int) -> CheckpointReport:
    return objects.checkpoint(step).model_copy(update={"bytes": 100 * MEBIBYTE})


def _world(spec: dict[str, Any] | None = None) -> World:
    world = World(SPEC | (spec or {}))
    prepared = objects.PREPARED_MESSAGE["prepared"] | {
        "trainableParameters": ADAPTER_PARAMETERS,
        "parameters": 1_000_000_000,
    }
    world.prepared_message = objects.PREPARED_MESSAGE | {"prepared": prepared}
    return world.until_running()


def _hear(world: World, step: int, *filesystems: FilesystemReport) -> None:
    checkpoint = _checkpoint(step) if step else None
    world.heard = objects.heard(step=step, checkpoint=checkpoint, filesystems=filesystems)
    world.settle()


def _is_under_pressure(world: World) -> bool | None:
    found = [condition for condition in world.status.conditions if condition.type == "StoragePressure"]
    return found[0].status == "True" if found else None


def test_a_filesystem_with_room_for_all_that_is_to_come_is_not_talked_about() -> None:
    world = _world()
    _hear(world, 0, _filesystem(free_mib=3 * 100 + 34 + RESERVE_MIB))
    assert _is_under_pressure(world) is None


def test_it_is_known_before_the_first_checkpoint_that_three_will_not_fit() -> None:
    world = _world()
    _hear(world, 0, _filesystem(free_mib=3 * 100 + 30 + RESERVE_MIB))
    status, reason, message = world.condition("StoragePressure")
    assert (status, reason) == ("True", "StorageShort")
    assert message.startswith(
        "The shared filesystem has 394 MiB free of 100.0 GiB, and the training needs about 397 MiB more: 3 checkpoints "
        "of 100 MiB beside those that are there, and its result."
    )
    assert world.status.phase == "Running"


def test_what_is_written_already_is_not_counted_again() -> None:
    world = _world()
    # Two are there; the third needs room beside them before the oldest goes.
    _hear(world, 20, _filesystem(free_mib=100 + 34 + RESERVE_MIB))
    assert _is_under_pressure(world) is None
    _hear(world, 20, _filesystem(free_mib=100 + 30 + RESERVE_MIB))
    assert _is_under_pressure(world) is True


def test_after_the_last_checkpoint_only_the_result_is_still_to_come() -> None:
    world = _world()
    _hear(world, 30, _filesystem(free_mib=34 + RESERVE_MIB))
    assert _is_under_pressure(world) is None


def test_a_merged_model_needs_room_for_itself() -> None:
    world = _world({"export": {"merged": True}})
    _hear(world, 30, _filesystem(free_mib=1500))  # a thousand million parameters of two bytes are 1907 MiB
    assert _is_under_pressure(world) is True


def test_the_pressure_is_told_once_and_taken_back_when_there_is_room_to_spare() -> None:
    world = _world()
    for free_mib in (200, 190, 180):
        _hear(world, 0, _filesystem(free_mib))
        world.advance(10)
    told = world.condition("StoragePressure")
    assert "200 MiB free" in told[2]
    _hear(world, 0, _filesystem(400))  # enough by a hair: others write to it, too
    assert world.condition("StoragePressure") == told
    _hear(world, 0, _filesystem(440))
    assert world.condition("StoragePressure")[:2] == ("False", "StorageSuffices")
    events = [(event.type.value, event.reason) for event in world.events if event.reason.startswith("Storage")]
    assert events == [("Warning", "StorageShort"), ("Normal", "StorageSuffices")]


def test_a_network_disk_needs_room_for_logs_only() -> None:
    world = _world()
    _hear(world, 0, _filesystem(500), _filesystem(65, name="network"))
    assert _is_under_pressure(world) is None
    _hear(world, 0, _filesystem(500), _filesystem(63, name="network"))
    message = world.condition("StoragePressure")[2]
    assert message.startswith(
        "The network filesystem has 63 MiB free of 100.0 GiB, and the training writes its logs there."
    )


def test_a_trainer_that_does_not_measure_says_neither() -> None:
    world = _world()
    _hear(world, 0, _filesystem(100))
    _hear(world, 10)
    assert _is_under_pressure(world) is True


def test_the_pressure_outlives_the_attempt_that_ran_into_it() -> None:
    world = _world()
    _hear(world, 0, _filesystem(10))
    world.set_pods(TRAIN, objects.ended(objects.failure_message("StorageFull"), exit_code=1))
    world.settle()
    assert _is_under_pressure(world) is True


@pytest.mark.parametrize(
    ("step", "total_steps", "checkpoints"),
    [
        (0, 30, 3),
        (9, 30, 3),
        (10, 30, 2),
        (20, 30, 1),
        (29, 30, 1),
        (30, 30, 0),
        (0, 5, 1),  # the last step has a checkpoint, whatever the interval
        (0, 15, 2),
        (10, 15, 1),
    ],
)
def test_no_more_checkpoints_are_expected_than_will_be_there_at_once(
    step: int, total_steps: int, checkpoints: int
) -> None:
    plan = PreparedReport.model_validate(objects.PREPARED_MESSAGE["prepared"])
    need = what_is_needed(
        make_job(SPEC).spec, FineTuneJobStatus(plan=plan), objects.report(step=step, total_steps=total_steps)
    )
    assert need.checkpoints == checkpoints


def test_a_checkpoint_is_reckoned_as_the_trainer_reckons_the_memory_of_what_is_in_it() -> None:
    assert ADAPTER_BYTES == memory.ADAPTER_BYTES
    assert CHECKPOINT_BYTES == memory.ADAPTER_BYTES + memory.ADAM_BYTES
