"""A conversation as this trainer understands it, whatever format its row was written in."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

JsonObject = dict[str, Any]


class Defect(StrEnum):
    """What is wrong with a row, as reports count it."""

    MALFORMED = "malformed"
    NOT_UTF8 = "not UTF-8"
    TOO_LARGE = "too large"
    UNBALANCED_TURNS = "unbalanced turns"
    EMPTY_TURN = "empty assistant turn"
    UNKNOWN_FUNCTION = "call of an unknown function"
    WRONG_ARGUMENTS = "arguments that break the schema"
    REFUSED_BY_TEMPLATE = "refused by the chat template"


class BadRowError(Exception):
    """A row that cannot be trained on.

    The message says which field is wrong and how to mend it, to the person who owns the data; whoever reports it puts
    the file and the row before it.
    """

    def __init__(self, message: str, defect: Defect = Defect.MALFORMED) -> None:
        super().__init__(message, defect)  # both, so that it can be sent from one process to another
        self.message = message
        self.defect = defect

    def __str__(self) -> str:
        return self.message


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True)
class ToolCall:
    """The assistant asks for a tool to be run."""

    name: str
    arguments: JsonObject


@dataclass(frozen=True)
class Message:
    """One turn. The answer of a tool is a turn of its own; the calls of one assistant turn were made in parallel."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    is_trained: bool = True  # False: a turn of the assistant that is context alone


@dataclass(frozen=True)
class Conversation:
    """Turns that end with the assistant's, and the tools it could call, as JSON schemas in OpenAI's notation."""

    messages: tuple[Message, ...]
    tools: tuple[JsonObject, ...] = ()


def make_conversation(messages: list[Message], tools: list[JsonObject]) -> Conversation:
    """Make a conversation of parsed turns, leaving out those behind the assistant's last: nothing is trained on them.

    Raises:
        BadRowError: nothing to train on, a turn in an impossible place, or an empty turn of the assistant.
    """
    turns = list(messages)
    while turns and turns[-1].role is not Role.ASSISTANT:
        turns.pop()
    if not turns:
        raise BadRowError(
            "has no turn of the assistant, so there is nothing to learn from it: add one, or leave it out"
        )
    if not any(message.is_trained for message in turns if message.role is Role.ASSISTANT):
        raise BadRowError("every turn of the assistant has weight 0, so there is nothing to learn: leave the row out")
    if Role.USER not in {message.role for message in turns}:
        raise BadRowError("has no turn of the user before the assistant's: add what was asked", Defect.UNBALANCED_TURNS)
    for number, message in enumerate(turns, start=1):
        problem = _misplaced(message, turns[number - 2] if number > 1 else None)
        if problem is not None:
            raise BadRowError(f"turn {number}: {problem}", Defect.UNBALANCED_TURNS)
        if message.role is Role.ASSISTANT and not message.content.strip() and not message.tool_calls:
            raise BadRowError(
                f"turn {number}: the assistant says nothing and calls nothing: fill its content or its tool calls",
                Defect.EMPTY_TURN,
            )
    return Conversation(tuple(turns), tuple(tools))


def _misplaced(message: Message, before: Message | None) -> str | None:
    """Say why a turn cannot follow the one before it, or return None."""
    if before is None:
        return "a tool answers, but nothing was called" if message.role is Role.TOOL else None
    match message.role:
        case Role.SYSTEM:
            return "a system turn can only be the first: move or remove it"
        case Role.TOOL if before.role not in (Role.ASSISTANT, Role.TOOL):
            return "a tool answers, but the assistant did not call one just before: add the call, or remove the answer"
        case Role.USER if before.role is Role.USER:
            return "the user speaks twice in a row: join the two turns"
        case Role.USER if before.tool_calls:
            return "the user speaks, but the assistant's call has no answer: add the tool's turn, or remove the call"
        case Role.ASSISTANT if before.role is Role.ASSISTANT:
            return "the assistant speaks twice in a row: join the two turns, or add the tool's answer between them"
    return None
