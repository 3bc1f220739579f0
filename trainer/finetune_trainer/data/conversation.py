"""A conversation as this trainer understands it, whatever format its row was written in."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

JsonObject = dict[str, Any]


class BadRowError(Exception):
    """A row that cannot be trained on. The message is the reason, told to the person who owns the data."""


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
        raise BadRowError("has no turn of the assistant, so there is nothing to learn from it")
    if Role.USER not in {message.role for message in turns}:
        raise BadRowError("has no turn of the user before the assistant's")
    for number, message in enumerate(turns, start=1):
        before = turns[number - 2].role if number > 1 else None
        if message.role is Role.SYSTEM and number > 1:
            raise BadRowError(f"turn {number}: a system turn can only be the first")
        if message.role is Role.TOOL and before not in (Role.ASSISTANT, Role.TOOL):
            raise BadRowError(f"turn {number}: a tool answers, but the assistant did not call one just before")
        if message.role is Role.ASSISTANT and not message.content.strip() and not message.tool_calls:
            raise BadRowError(f"turn {number}: the assistant says nothing and calls nothing")
    return Conversation(tuple(turns), tuple(tools))
