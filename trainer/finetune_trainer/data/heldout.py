"""The rows that training never sees: JSON Lines beside the packed data, for whoever scores a model on them.

A line is a conversation as this trainer understands it, whatever format its row was written in:
`{"dataset", "row", "messages": [{"role", "content", "tool_calls": [{"name", "arguments"}], "is_trained"}],
"tools": [...]}`.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.conversation import Conversation, Message, Role, ToolCall
from finetune_trainer.errors import TrainerError

HELDOUT_FILE = "heldout.jsonl"
# The same rows, packed like those that are trained on, for the loss on them: `PackedSequences.open` reads it. It is
# missing when no row is held out.
HELDOUT_DIRECTORY = "heldout"


@dataclass(frozen=True)
class HeldOutRow:
    """A conversation that is scored, and where a person finds its row."""

    dataset: str  # repository or path, as the report names it
    place: str  # file and row
    conversation: Conversation


def write_heldout(directory: Path, rows: Iterable[HeldOutRow]) -> None:
    """Write the held-out rows of prepared data into its directory. Raises OSError."""
    with (directory / HELDOUT_FILE).open("w", encoding="utf-8") as file:
        for row in rows:
            document = {"dataset": row.dataset, "row": row.place, **asdict(row.conversation)}
            file.write(json.dumps(document, ensure_ascii=False) + "\n")


def read_heldout(directory: Path) -> list[HeldOutRow]:
    """Return the held-out rows of a directory of prepared data, in the order of their files.

    Raises:
        TrainerError: DATA_UNAVAILABLE when the file is missing or damaged.
    """
    path = directory / HELDOUT_FILE
    try:
        # NB: not str.splitlines, which also splits at the line separators that a text may hold.
        with path.open(encoding="utf-8") as file:
            return [_row(json.loads(line)) for line in file]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainerError(
            Reason.DATA_UNAVAILABLE, f"{path}: cannot be read as held-out rows ({error}); run prepare again"
        ) from error


def _row(document: dict[str, Any]) -> HeldOutRow:
    messages = tuple(
        Message(
            Role(message["role"]),
            message["content"],
            tuple(ToolCall(call["name"], call["arguments"]) for call in message["tool_calls"]),
            message["is_trained"],
        )
        for message in document["messages"]
    )
    return HeldOutRow(document["dataset"], document["row"], Conversation(messages, tuple(document["tools"])))
