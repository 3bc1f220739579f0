"""The file of held-out rows: what is written is what is read."""

import json
from pathlib import Path

import pytest

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.conversation import Conversation, Message, Role, ToolCall
from finetune_trainer.data.heldout import HELDOUT_FILE, HeldOutRow, read_heldout, write_heldout
from finetune_trainer.errors import TrainerError

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
ROWS = [
    HeldOutRow(
        "team/calls",
        "team/calls/rows.jsonl, row 7",
        Conversation(
            (
                Message(Role.SYSTEM, "Be brief."),
                Message(Role.USER, "1 + 1?\u2028größer"),
                Message(Role.ASSISTANT, "", (ToolCall("add", {"a": 1, "b": [1.5, None, True]}), ToolCall("add", {}))),
                Message(Role.TOOL, "2"),
                Message(Role.ASSISTANT, "Two.", is_trained=False),
                Message(Role.USER, "Thanks."),
                Message(Role.ASSISTANT, "At your service."),
            ),
            (TOOL,),
        ),
    ),
    HeldOutRow(
        "data", "data/b.json, row 1", Conversation((Message(Role.USER, "a\r\nb"), Message(Role.ASSISTANT, "c")))
    ),
]


@pytest.mark.parametrize("rows", [ROWS, []])
def test_held_out_rows_are_read_as_they_were_written(rows: list[HeldOutRow], tmp_path: Path) -> None:
    write_heldout(tmp_path, rows)
    assert read_heldout(tmp_path) == rows


def test_a_line_of_the_file_is_plain_json(tmp_path: Path) -> None:
    write_heldout(tmp_path, ROWS[1:])
    assert json.loads((tmp_path / HELDOUT_FILE).read_text(encoding="utf-8")) == {
        "dataset": "data",
        "row": "data/b.json, row 1",
        "messages": [
            {"role": "user", "content": "a\r\nb", "tool_calls": [], "is_trained": True},
            {"role": "assistant", "content": "c", "tool_calls": [], "is_trained": True},
        ],
        "tools": [],
    }


@pytest.mark.parametrize("text", [None, '{"dataset": "a"}\n', "{", '{"dataset": "a", "row": "b", "messages": [[]]}'])
def test_a_missing_or_damaged_file_is_refused_with_its_name(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / HELDOUT_FILE).write_text(text)
    with pytest.raises(TrainerError) as error:
        read_heldout(tmp_path)
    assert error.value.reason is Reason.DATA_UNAVAILABLE
    assert str(tmp_path / HELDOUT_FILE) in error.value.message
    assert "run prepare again" in error.value.message
