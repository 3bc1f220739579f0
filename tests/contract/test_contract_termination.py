"""The last word of a container reaches the operator whole."""

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.__main__ import summarise
from finetune_trainer.contract.termination import (
    MAX_BYTES,
    DatasetReport,
    PreparedReport,
    Reason,
    TerminationMessage,
    TrainedReport,
    read_termination,
    write_termination,
)

PREPARED = PreparedReport(
    model="team/model@0123456789abcdef0123456789abcdef01234567",
    model_family="llama",
    model_path="models/team--model@0123456789abcdef0123456789abcdef01234567",
    data_path="datasets/0123456789abcdef0123456789abcdef",
    datasets=(DatasetReport(name="team/calls", revision="abc", rows_read=10, rows_kept=9, dropped={"malformed": 1}),),
    parameters=8_030_261_248,
    trainable_parameters=167_772_160,
    tokens=1000,
    trained_tokens=300,
    sequences=5,
    world_size=16,
    global_batch=512,
    steps_per_epoch=1,
    total_steps=3,
    warmup_steps=1,
    precision="bf16",
    sharding="hybrid",
    estimated_memory_bytes=1 << 34,
    notes=("warm-up is 1 step",),
)
TRAINED = TrainedReport(
    steps=3,
    first_loss=2.5,
    final_loss=0.5,
    tokens=3000,
    tokens_per_second=123.4,
    adapter_path="jobs/team-a/calls/uid/adapter",
    adapter_digest="sha256:" + "0" * 64,
)

MESSAGES: dict[str, TerminationMessage] = {
    "a success of prepare": TerminationMessage(reason=Reason.SUCCEEDED, message="prepared", prepared=PREPARED),
    "a success of train": TerminationMessage(reason=Reason.SUCCEEDED, message="trained", trained=TRAINED),
    "a failure on a rank at a step": TerminationMessage(
        reason=Reason.DIVERGED, message="Verlust größer als ∞", rank=3, step=17, checkpoint="checkpoints/step-10"
    ),
}


def written(path: Path, message: TerminationMessage) -> TerminationMessage | None:
    write_termination(path / "log", message)
    assert (path / "log").stat().st_size <= MAX_BYTES
    return read_termination((path / "log").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", MESSAGES)
def test_what_is_written_is_read(case: str, tmp_path: Path) -> None:
    assert written(tmp_path, MESSAGES[case]) == MESSAGES[case]


@pytest.mark.parametrize("letter", ["x", "ü", "🙂", "\\", "\n"])
def test_a_text_that_is_too_long_loses_its_middle_and_stays_readable(letter: str, tmp_path: Path) -> None:
    text = f"first words {letter * 5000} last words"
    message = written(tmp_path, TerminationMessage(reason=Reason.ERROR, message=text, rank=1))
    assert message is not None
    assert message.rank == 1
    assert message.message.startswith("first words ")
    assert " [...] " in message.message
    assert message.message.endswith(" last words")


def test_of_many_data_sets_the_sum_arrives_and_everything_else_of_the_plan(tmp_path: Path) -> None:
    dataset = DatasetReport(
        name="organisation/" + "d" * 150, revision="0" * 40, rows_read=10, rows_kept=9, dropped={"malformed": 1}
    )
    prepared = PREPARED.model_copy(update={"datasets": (dataset,) * 32, "notes": ("note " * 50,) * 20})
    message = written(tmp_path, TerminationMessage(reason=Reason.SUCCEEDED, message="prepared", prepared=prepared))
    assert message is not None
    assert message.prepared is not None
    [merged] = message.prepared.datasets
    assert (merged.rows_read, merged.rows_kept, merged.dropped) == (320, 288, {"malformed": 32})
    assert message.prepared.model_copy(update={"datasets": (), "notes": ()}) == PREPARED.model_copy(
        update={"datasets": (), "notes": ()}
    )


def test_notes_that_are_too_long_are_left_out_before_data_sets_are(tmp_path: Path) -> None:
    prepared = PREPARED.model_copy(update={"notes": ("note " * 50,) * 20})
    message = written(tmp_path, TerminationMessage(reason=Reason.SUCCEEDED, message="prepared", prepared=prepared))
    assert message is not None
    assert message.prepared is not None
    assert message.prepared.datasets == PREPARED.datasets
    assert message.prepared.notes == ("The notes are in prepared.json",)


def test_fields_of_a_newer_trainer_are_passed_over() -> None:
    message = read_termination('{"reason": "Succeeded", "message": "done", "colour": "blue"}')
    assert message == TerminationMessage(reason=Reason.SUCCEEDED, message="done")


def test_the_summary_of_prepare_tells_what_was_left_out_and_why() -> None:
    assert summarise(PREPARED) == (
        "prepared 9 of 10 rows (left out: 1 malformed): 5 sequences, 1000 tokens (300 trained), 3 steps, "
        "about 16.0 GiB of memory a process"
    )


UNREADABLE: dict[str, Any] = {
    "nothing": None,
    "an empty file": "",
    "the log of a program that is no trainer": "Segmentation fault",
    "a reason that nobody knows": '{"reason": "Tired", "message": ""}',
    "a message that the kubelet cut": '{"reason": "Error", "mess',
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_text_that_is_no_message_is_none(case: str) -> None:
    assert read_termination(UNREADABLE[case]) is None
