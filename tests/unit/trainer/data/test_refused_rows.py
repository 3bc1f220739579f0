"""The reasons for which rows are refused; whatever else a row holds is understood."""

from contextlib import suppress
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.data.conversation import BadRowError, Role
from finetune_trainer.data.formats import parse_row
from tests.unit.trainer.data.rows_as_written import GLAIVE_CHAT, OPENAI_MESSAGES, hermes, weighed

REFUSED: dict[str, tuple[DatasetFormat, dict[str, Any], str]] = {
    "sharegpt data called hermes": (
        DatasetFormat.HERMES,
        {"conversations": [{"from": "function_call", "value": "{}"}]},
        "'function_call' is none of system, human, user, gpt, assistant, tool: set format: sharegpt",
    ),
    "alpaca data called openai": (
        DatasetFormat.OPENAI,
        {"instruction": "Hi", "output": "Hello."},
        "the row looks like format alpaca: set format: alpaca",
    ),
    "a sharegpt call that is no JSON": (
        DatasetFormat.SHAREGPT,
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": "f()"}]},
        "conversations[2].value: is not JSON",
    ),
    "an alpaca row whose output is a number": (
        DatasetFormat.ALPACA,
        {"instruction": "1 + 1?", "output": 2},
        "output: expected a text, found int",
    ),
    "an alpaca history that is no pair": (
        DatasetFormat.ALPACA,
        {"instruction": "a", "output": "b", "history": [["c"]]},
        "history[1]: expected a list of two texts",
    ),
    "a hermes row named glaive": (
        DatasetFormat.GLAIVE,
        hermes(("human", "Hi"), ("gpt", "Hello.")),
        "is not in format glaive: no text `chat` among its fields (conversations); the row looks like "
        "format hermes: set format: hermes",
    ),
    "a glaive row named openai": (DatasetFormat.OPENAI, {"system": "", "chat": GLAIVE_CHAT}, "set format: glaive"),
    "an openai row named hermes": (DatasetFormat.HERMES, {"messages": OPENAI_MESSAGES}, "set format: openai"),
    "a row of no format at all": (
        DatasetFormat.HERMES,
        {"text": "Hi"},
        "no list `conversations` among its fields (text)",
    ),
    "a turn without words": (
        DatasetFormat.HERMES,
        {"conversations": [{"from": "human"}]},
        "conversations[1].value: expected a text",
    ),
    "a speaker that the format does not know": (
        DatasetFormat.HERMES,
        hermes(("human", "Hi"), ("robot", "Beep")),
        "conversations[2].from: 'robot' is none of system",
    ),
    "a tool call that is not JSON": (
        DatasetFormat.HERMES,
        hermes(("human", "Hi"), ("gpt", '<tool_call>{"name": </tool_call>')),
        "tool_call: is not JSON",
    ),
    "a tool call that never ends": (
        DatasetFormat.HERMES,
        hermes(("human", "Hi"), ("gpt", '<tool_call>{"name": "f"}')),
        "has no matching </tool_call>",
    ),
    "tools that are no list": (
        DatasetFormat.HERMES,
        hermes(("human", "Hi"), ("gpt", "Hello."), tools="7"),
        "tools: expected a list of functions",
    ),
    "no word of the assistant": (DatasetFormat.HERMES, hermes(("human", "Hi")), "has no turn of the assistant"),
    "an assistant that speaks to nobody": (DatasetFormat.HERMES, hermes(("gpt", "Hello.")), "has no turn of the user"),
    "an assistant that says nothing": (
        DatasetFormat.HERMES,
        hermes(("human", "Hi"), ("gpt", " ")),
        "turn 2: the assistant says nothing and calls nothing",
    ),
    "a system turn in the middle": (
        DatasetFormat.HERMES,
        hermes(("human", "Hi"), ("system", "Stop"), ("gpt", "Hello.")),
        "turn 2: a system turn can only",
    ),
    "an answer of a tool that nobody called": (
        DatasetFormat.HERMES,
        hermes(("human", "Hi"), ("tool", "1"), ("gpt", "Hello.")),
        "turn 2: a tool answers",
    ),
    "a glaive chat that begins with something else": (
        DatasetFormat.GLAIVE,
        {"chat": "Hello there\nUSER: Hi\nASSISTANT: Hello."},
        "chat: begins with 'Hello there'",
    ),
    "a glaive function that is not JSON": (
        DatasetFormat.GLAIVE,
        {"system": 'SYSTEM: Use -\n{"name": }', "chat": GLAIVE_CHAT},
        "system: function 1 is not JSON",
    ),
    "arguments that are no object": (
        DatasetFormat.OPENAI,
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            ]
        },
        "arguments of f: expected an object, found list",
    ),
    "arguments that only Python can write": (
        DatasetFormat.HERMES,
        hermes(("human", "Hi"), ("gpt", "<tool_call>{'name': 'f', 'arguments': {'tags': {1, 2}}}</tool_call>")),
        "arguments of f: cannot be written as JSON: Object of type set",
    ),
    "a tool with a date out of a Parquet file": (
        DatasetFormat.OPENAI,
        {"messages": OPENAI_MESSAGES, "tools": [{"function": {"name": "f", "since": date(2026, 1, 1)}}]},
        "tools: f: cannot be written as JSON: Object of type date",
    ),
    "a tool call that nests too deep to be read": (
        DatasetFormat.HERMES,
        hermes(("human", "Hi"), ("gpt", "<tool_call>" + "[" * 100_000 + "</tool_call>")),
        "tool_call: is not JSON",
    ),
    "content that is an image": (
        DatasetFormat.OPENAI,
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url"}]},
                {"role": "assistant", "content": "A cat."},
            ]
        },
        "messages[1].content: expected a text",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_is_refused_with_its_reason(case: str) -> None:
    dataset_format, row, reason = REFUSED[case]
    with pytest.raises(BadRowError) as refusal:
        parse_row(row, dataset_format)
    assert reason in str(refusal.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["user", "gpt", "tool", "{", "[1]"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "id"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(
    dataset_format=st.sampled_from(DatasetFormat),
    row=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("conversations", "messages", "chat", "system", "tools"), JSON)
    ),
)
def test_whatever_a_row_holds_it_is_understood_or_refused(dataset_format: DatasetFormat, row: dict[str, Any]) -> None:
    with suppress(BadRowError):
        assert parse_row(row, dataset_format).messages[-1].role is Role.ASSISTANT


TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text("ab ", max_size=3)},
        optional={
            "tool_call_id": JSON,
            "tool_calls": st.lists(
                st.fixed_dictionaries({"function": st.just({"name": "f", "arguments": "{}"})}, optional={"id": JSON}),
                max_size=3,
            ),
        },
    ),
    max_size=6,
)


@given(turns=TURNS)
def test_whatever_order_turns_have_they_are_understood_or_refused(turns: list[dict[str, Any]]) -> None:
    said = [turn["content"] for turn in turns]
    with suppress(BadRowError):
        understood = parse_row({"messages": turns}, DatasetFormat.OPENAI).messages
        assert sorted(message.content for message in understood) == sorted(said[: len(understood)])


def test_a_weight_that_is_neither_0_nor_1_is_refused() -> None:
    with pytest.raises(BadRowError, match=r"messages\[4\]\.weight: 0\.5 is neither 0 nor 1"):
        parse_row(weighed(1, 0.5), DatasetFormat.OPENAI)


def test_a_row_that_trains_on_no_turn_is_refused() -> None:
    with pytest.raises(BadRowError, match="every turn of the assistant has weight 0"):
        parse_row(weighed(0, 0), DatasetFormat.OPENAI)
