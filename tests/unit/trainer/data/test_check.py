"""Conversations that can be read and must not be learnt from."""

import socket
from typing import Any

import pytest

from finetune_trainer.data import check
from finetune_trainer.data.check import check_calls, check_size
from finetune_trainer.data.conversation import BadRowError, Conversation, Defect, Message, Role, ToolCall


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name} | ({} if parameters is None else {"parameters": parameters})}


ADD = tool(
    "add",
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "unit": {"enum": ["m", "km"]}, "at": {"items": {"type": "number"}}},
        "required": ["a"],
    },
)


def calling(*calls: ToolCall, tools: tuple[dict[str, Any], ...] = (ADD,)) -> Conversation:
    return Conversation((Message(Role.USER, "Go"), Message(Role.ASSISTANT, "", calls)), tools)


FIT: dict[str, Conversation] = {
    "a call whose arguments fit": calling(ToolCall("add", {"a": 1, "unit": "km", "at": [1, 2.5]})),
    "an argument that the schema does not name": calling(ToolCall("add", {"a": 1, "b": 2})),
    "a tool without a schema": calling(ToolCall("now", {"zone": "UTC"}), tools=(tool("now"),)),
    "a tool with an empty schema": calling(ToolCall("now", {"zone": "UTC"}), tools=(tool("now", {}),)),
    "a schema in another notation than JSON Schema": calling(
        ToolCall("now", {"zone": 1}), tools=(tool("now", {"type": "dict", "properties": {"zone": {"type": "str"}}}),)
    ),
    "no call at all": Conversation((Message(Role.USER, "Hi"), Message(Role.ASSISTANT, "Hello."))),
}


@pytest.mark.parametrize("case", FIT)
def test_calls_that_fit_their_tools_pass(case: str) -> None:
    check_calls(FIT[case])


MISFITS: dict[str, tuple[Conversation, Defect, str]] = {
    "a function that is not among the tools": (
        calling(ToolCall("multiply", {}), tools=(ADD, tool("now"))), Defect.UNKNOWN_FUNCTION,
        "turn 2: calls multiply, which is not among the row's tools (add, now): add it to them, or correct the call",
    ),
    "a function that is almost among the tools": (
        calling(ToolCall("ad", {"a": 1})), Defect.UNKNOWN_FUNCTION,
        "turn 2: calls ad, which is not among the row's tools: is it add?",
    ),
    "a call in a row without tools": (
        calling(ToolCall("add", {}), tools=()), Defect.UNKNOWN_FUNCTION,
        "turn 2: calls add, but the row has no tools: add the functions that can be called to `tools`",
    ),
    "an argument that is missing": (
        calling(ToolCall("add", {"unit": "m"})), Defect.WRONG_ARGUMENTS,
        "turn 2: arguments of add: 'a' is a required property: correct the call, or the tool's `parameters`",
    ),
    "an argument of another type, in the second of two calls": (
        calling(ToolCall("add", {"a": 1}), ToolCall("add", {"a": "1"})), Defect.WRONG_ARGUMENTS,
        "turn 2: arguments.a of add: '1' is not of type 'integer': correct the call, or the tool's `parameters`",
    ),
    "an argument that is none of the choices": (
        calling(ToolCall("add", {"a": 1, "unit": "mile"})), Defect.WRONG_ARGUMENTS,
        "turn 2: arguments.unit of add: 'mile' is not one of ['m', 'km']",
    ),
    "an element of a list": (
        calling(ToolCall("add", {"a": 1, "at": [1, "x"]})), Defect.WRONG_ARGUMENTS,
        "turn 2: arguments.at.1 of add: 'x' is not of type 'number'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_calls_that_do_not_fit_their_tools_are_refused_with_turn_field_and_mend(case: str) -> None:
    conversation, defect, words = MISFITS[case]
    with pytest.raises(BadRowError) as refusal:
        check_calls(conversation)
    assert refusal.value.defect is defect
    assert str(refusal.value).startswith(words)


def test_what_a_schema_refers_to_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("connected to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    elsewhere = tool("add", {"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(BadRowError, match="the schema of add cannot be followed"):
        check_calls(calling(ToolCall("add", {}), tools=(elsewhere,)))


def test_a_long_value_is_not_told_whole() -> None:
    with pytest.raises(BadRowError) as refusal:
        check_calls(calling(ToolCall("add", {"a": "x" * 100_000})))
    assert len(str(refusal.value)) < 400


def test_a_conversation_larger_than_any_model_reads_is_refused_with_its_largest_part() -> None:
    conversation = Conversation((Message(Role.USER, "x" * (10 << 20)), Message(Role.ASSISTANT, "Long.")))
    with pytest.raises(BadRowError) as refusal:
        check_size(conversation)
    assert refusal.value.defect is Defect.TOO_LARGE
    assert str(refusal.value) == (
        "has 10,485,765 characters, of which 10,485,760 in turn 1 (user); 4,194,304 are read at most: shorten it, or "
        "leave it out"
    )


def test_the_tools_count_for_the_size_of_a_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MAX_CHARACTERS", 100)
    with pytest.raises(BadRowError, match="in tools"):
        check_size(calling(ToolCall("add", {"a": 1})))
