"""Each format as its data sets really write it, and the reasons for which rows are refused."""

import json
from contextlib import suppress
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.data.conversation import BadRowError, Conversation, Message, Role, ToolCall
from finetune_trainer.data.formats import parse_row

FUNCTION = {"name": "get_weather", "description": "Weather of a city", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
PARIS = ToolCall("get_weather", {"city": "Paris"})

HERMES_SYSTEM = (
    "You are a function calling AI model. You are provided with function signatures within <tools> </tools> XML "
    "tags. You may call one or more functions.\n<tools>\n[{tool}]\n</tools>\nFor each function call return a json "
    "object within <tool_call> </tool_call> tags with the following schema:\n<tool_call>\n"
    "{{'arguments': <args-dict>, 'name': <name>}}\n</tool_call>\nSpeak like a pirate."
)


def says(role: Role, content: str, *calls: ToolCall) -> Message:
    return Message(role, content, calls)


CALLED = (
    says(Role.USER, "Weather in Paris?"),
    says(Role.ASSISTANT, "", PARIS),
    says(Role.TOOL, '{"sky": "clear"}'),
    says(Role.ASSISTANT, "It is clear."),
)


def hermes(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": name, "value": text} for name, text in turns], **fields}


HERMES_TURNS = (
    ("human", "Weather in Paris?"),
    ("gpt", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'),
    ("tool", '<tool_response>\n{"sky": "clear"}\n</tool_response>'),
    ("gpt", "It is clear."),
)
GLAIVE_SYSTEM = "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
GLAIVE_CHAT = (
    "USER: Weather in Paris?\n\n\n"
    'ASSISTANT: <functioncall> {"name": "get_weather", "arguments": \'{"city": "Paris"}\'} <|endoftext|>\n\n\n'
    'FUNCTION RESPONSE: {"sky": "clear"}\n\n\n'
    "ASSISTANT: It is clear. <|endoftext|>\n\n\n"
)
OPENAI_MESSAGES = [
    {"role": "user", "content": "Weather in Paris?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": '{"sky": "clear"}'},
    {"role": "assistant", "content": "It is clear."},
]

UNDERSTOOD: dict[str, tuple[DatasetFormat, dict[str, Any], Conversation]] = {
    "sharegpt with calls and answers in turns of their own, and the tools beside them": (
        DatasetFormat.SHAREGPT,
        {
            "conversations": [
                {"from": "human", "value": "Weather in Paris?"},
                {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "Paris"}}'},
                {"from": "observation", "value": '{"sky": "clear"}'},
                {"from": "gpt", "value": "It is clear."},
            ],
            "tools": json.dumps([FUNCTION]),
            "system": "Be brief.",
        },
        Conversation((says(Role.SYSTEM, "Be brief."), *CALLED), (TOOL,)),
    ),
    "sharegpt with two calls at once": (
        DatasetFormat.SHAREGPT,
        {
            "conversations": [
                {"from": "human", "value": "Both?"},
                {"from": "function_call", "value": json.dumps([{"name": "f", "arguments": {}}] * 2)},
                {"from": "observation", "value": "1"},
                {"from": "observation", "value": "2"},
                {"from": "chatgpt", "value": "Done."},
            ]
        },
        Conversation(
            (
                says(Role.USER, "Both?"),
                says(Role.ASSISTANT, "", ToolCall("f", {}), ToolCall("f", {})),
                says(Role.TOOL, "1"),
                says(Role.TOOL, "2"),
                says(Role.ASSISTANT, "Done."),
            )
        ),
    ),
    "alpaca with an input": (
        DatasetFormat.ALPACA,
        {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"},
        Conversation((says(Role.USER, "Translate.\n\nGuten Tag"), says(Role.ASSISTANT, "Good day"))),
    ),
    "alpaca without an input, with a system text and a history": (
        DatasetFormat.ALPACA,
        {
            "instruction": "And now?",
            "input": "",
            "output": "Yes.",
            "system": "Be brief.",
            "history": [["Hi", "Hello."]],
        },
        Conversation(
            (
                says(Role.SYSTEM, "Be brief."),
                says(Role.USER, "Hi"),
                says(Role.ASSISTANT, "Hello."),
                says(Role.USER, "And now?"),
                says(Role.ASSISTANT, "Yes."),
            )
        ),
    ),
    "openai in a table, where lists are texts of JSON": (
        DatasetFormat.OPENAI,
        {"messages": json.dumps(OPENAI_MESSAGES), "tools": json.dumps([TOOL])},
        Conversation(CALLED, (TOOL,)),
    ),
    "hermes with the tools in the system turn; its explanation goes, other words of it stay": (
        DatasetFormat.HERMES,
        hermes(("system", HERMES_SYSTEM.format(tool=json.dumps(TOOL))), *HERMES_TURNS),
        Conversation((says(Role.SYSTEM, "Speak like a pirate."), *CALLED), (TOOL,)),
    ),
    "hermes with tools written as a Python literal": (
        DatasetFormat.HERMES,
        hermes(("system", HERMES_SYSTEM.format(tool=repr(TOOL))), *HERMES_TURNS),
        Conversation((says(Role.SYSTEM, "Speak like a pirate."), *CALLED), (TOOL,)),
    ),
    "hermes with a call written as a Python literal": (
        DatasetFormat.HERMES,
        hermes(
            ("human", "Weather in Paris?"),
            ("gpt", "<tool_call>\n{'name': 'get_weather', 'arguments': {'city': 'Paris'}}\n</tool_call>"),
        ),
        Conversation(CALLED[:2]),
    ),
    "hermes with the tools in a field of their own, as a text": (
        DatasetFormat.HERMES,
        hermes(*HERMES_TURNS, tools=json.dumps([TOOL])),
        Conversation(CALLED, (TOOL,)),
    ),
    "hermes with two answers in one tool turn": (
        DatasetFormat.HERMES,
        hermes(
            ("human", "Both?"),
            ("gpt", "Sure.\n" + HERMES_TURNS[1][1] * 2),
            ("tool", "<tool_response>1</tool_response>\n<tool_response>2</tool_response>"),
            ("gpt", "Done."),
        ),
        Conversation(
            (
                says(Role.USER, "Both?"),
                says(Role.ASSISTANT, "Sure.", PARIS, PARIS),
                says(Role.TOOL, "1"),
                says(Role.TOOL, "2"),
                says(Role.ASSISTANT, "Done."),
            )
        ),
    ),
    "hermes without tools keeps its system turn as it is": (
        DatasetFormat.HERMES,
        hermes(("system", "Be brief.\n"), ("human", "Hi"), ("gpt", "Hello.")),
        Conversation((says(Role.SYSTEM, "Be brief.\n"), says(Role.USER, "Hi"), says(Role.ASSISTANT, "Hello."))),
    ),
    "turns behind the assistant's last are left out": (
        DatasetFormat.HERMES,
        hermes(("human", "Hi"), ("gpt", "Hello."), ("human", "Bye")),
        Conversation((says(Role.USER, "Hi"), says(Role.ASSISTANT, "Hello."))),
    ),
    "glaive with a function and a call": (
        DatasetFormat.GLAIVE,
        {
            "system": GLAIVE_SYSTEM + json.dumps(FUNCTION, indent=4),
            "chat": GLAIVE_CHAT,
        },
        Conversation((says(Role.SYSTEM, "You are a helpful assistant."), *CALLED), (TOOL,)),
    ),
    "glaive with two functions behind each other": (
        DatasetFormat.GLAIVE,
        {
            "system": GLAIVE_SYSTEM + json.dumps(FUNCTION) + "\n\n" + json.dumps(FUNCTION | {"name": "other"}),
            "chat": GLAIVE_CHAT,
        },
        Conversation(
            (says(Role.SYSTEM, "You are a helpful assistant."), *CALLED),
            (TOOL, {"type": "function", "function": FUNCTION | {"name": "other"}}),
        ),
    ),
    "glaive without functions": (
        DatasetFormat.GLAIVE,
        {
            "system": "SYSTEM: You are a helpful assistant, with no access to external functions.",
            "chat": "USER: Hi\n\n\nASSISTANT: Hello.\nUSER and ASSISTANT are words. <|endoftext|>\n\n\n",
        },
        Conversation(
            (
                says(Role.SYSTEM, "You are a helpful assistant, with no access to external functions."),
                says(Role.USER, "Hi"),
                says(Role.ASSISTANT, "Hello.\nUSER and ASSISTANT are words."),
            )
        ),
    ),
    "glaive with an apostrophe within the quoted arguments": (
        DatasetFormat.GLAIVE,
        {
            "system": "",
            "chat": "USER: Weather?\nASSISTANT: <functioncall> "
            '{"name": "get_weather", "arguments": \'{"city": "L\\\'Aquila"}\'} <|endoftext|>',
        },
        Conversation(
            (says(Role.USER, "Weather?"), says(Role.ASSISTANT, "", ToolCall("get_weather", {"city": "L'Aquila"})))
        ),
    ),
    "openai with tools and tool calls": (
        DatasetFormat.OPENAI,
        {"messages": OPENAI_MESSAGES, "tools": [TOOL]},
        Conversation(CALLED, (TOOL,)),
    ),
    "openai with answers of parallel calls in another order": (
        DatasetFormat.OPENAI,
        {
            "messages": [
                {"role": "user", "content": "Both?"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {
                            "id": name,
                            "type": "function",
                            "function": {"name": "get_weather", "arguments": {"city": city}},
                        }
                        for name, city in (("a", "Paris"), ("b", "Rome"))
                    ],
                },
                {"role": "tool", "tool_call_id": "b", "content": "rain"},
                {"role": "tool", "tool_call_id": "a", "content": "sun"},
                {"role": "assistant", "content": [{"type": "text", "text": "Done."}]},
            ]
        },
        Conversation(
            (
                says(Role.USER, "Both?"),
                says(Role.ASSISTANT, "", PARIS, ToolCall("get_weather", {"city": "Rome"})),
                says(Role.TOOL, "sun"),
                says(Role.TOOL, "rain"),
                says(Role.ASSISTANT, "Done."),
            )
        ),
    ),
    "openai out of a Parquet file, every object with the fields of all others": (
        DatasetFormat.OPENAI,
        {
            "messages": [
                {"role": "developer", "content": "Be brief.", "tool_calls": None, "tool_call_id": None},
                {"role": "user", "content": "Hi", "tool_calls": None, "tool_call_id": None},
                {"role": "assistant", "content": "Hello.", "tool_calls": None, "tool_call_id": None},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "enum": None}}}],
        },
        Conversation(
            (says(Role.SYSTEM, "Be brief."), says(Role.USER, "Hi"), says(Role.ASSISTANT, "Hello.")),
            ({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},),
        ),
    ),
}


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_a_row_is_understood(case: str) -> None:
    dataset_format, row, expected = UNDERSTOOD[case]
    assert parse_row(row, dataset_format) == expected


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


def test_fields_that_a_table_fills_with_null_are_no_arguments() -> None:
    call = {"name": "get_weather", "arguments": {"city": "Paris", "currency": None}}
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [{"function": call}]}]}
    assert parse_row(row, DatasetFormat.OPENAI).messages[1].tool_calls == (PARIS,)


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


def weighed(*weights: Any) -> dict[str, Any]:
    answers = [{"role": "assistant", "content": "Hello."} | ({} if one is None else {"weight": one}) for one in weights]
    return {"messages": [turn for answer in answers for turn in ({"role": "user", "content": "Hi"}, answer)]}


def test_turns_of_weight_0_are_not_trained_on() -> None:
    conversation = parse_row(weighed(0, 1, None), DatasetFormat.OPENAI)
    assert [message.is_trained for message in conversation.messages if message.role == "assistant"] == [
        False,
        True,
        True,
    ]


def test_a_weight_that_is_neither_0_nor_1_is_refused() -> None:
    with pytest.raises(BadRowError, match=r"messages\[4\]\.weight: 0\.5 is neither 0 nor 1"):
        parse_row(weighed(1, 0.5), DatasetFormat.OPENAI)


def test_a_row_that_trains_on_no_turn_is_refused() -> None:
    with pytest.raises(BadRowError, match="every turn of the assistant has weight 0"):
        parse_row(weighed(0, 0), DatasetFormat.OPENAI)
