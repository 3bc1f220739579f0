"""Questions for a model: each turn of the assistant in the held-out rows, and what it should call there."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune_trainer.data.conversation import Role, ToolCall
from finetune_trainer.data.heldout import HeldOutRow
from finetune_trainer.data.template import ChatTurn
from finetune_trainer.inference.dialect import Dialect
from finetune_trainer.toolcalls import CallStyle, parse_turn


@dataclass(frozen=True)
class Turn:
    """One turn to be written: the tokens before it, and what it called in the data."""

    row: int  # index of the held-out row
    place: str  # file and row, and the number of the turn, for people
    prompt: npt.NDArray[np.int32]  # [num_tokens]
    expected: tuple[ToolCall, ...]
    expected_text: str
    functions: frozenset[str]  # names of the tools of the row


def make_turns(rows: Sequence[HeldOutRow], dialect: Dialect, max_turns: int) -> list[Turn]:
    """Return the turns to be written; where there are more than `max_turns`, those that a digest of their place draws.

    Raises:
        BadRowError: the template refuses a row that it took when the data was prepared.
    """
    places = [
        (index, number)
        for index, row in enumerate(rows)
        for number, turn in enumerate(dialect.renderer.template.spell(row.conversation)[0])
        if turn["role"] == Role.ASSISTANT
    ]
    if len(places) > max_turns:
        drawn = sorted(places, key=lambda place: hashlib.sha256(f"{place[0]}/{place[1]}".encode()).digest())
        places = sorted(drawn[:max_turns])
    return [_make_turn(index, number, rows[index], dialect) for index, number in places]


def _make_turn(index: int, number: int, row: HeldOutRow, dialect: Dialect) -> Turn:
    turns, tools = dialect.renderer.template.spell(row.conversation)
    calls, text = _what_was_said(turns[number])
    return Turn(
        row=index,
        place=f"{row.place}, turn {number + 1}",
        prompt=dialect.prompt(turns[:number], tools),
        expected=calls,
        expected_text=text,
        functions=frozenset(tool["function"]["name"] for tool in row.conversation.tools),
    )


def _what_was_said(turn: ChatTurn) -> tuple[tuple[ToolCall, ...], str]:
    """Return the calls and the words of a spelt turn; a template without tools has its calls as text."""
    if "tool_calls" in turn:
        calls = tuple(ToolCall(call["function"]["name"], call["function"]["arguments"]) for call in turn["tool_calls"])
        return calls, turn["content"]
    parsed = parse_turn(turn["content"], CallStyle.HERMES)
    return parsed.calls, parsed.text
