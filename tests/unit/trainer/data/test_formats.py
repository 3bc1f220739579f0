"""Each format as its data sets really write it."""

import json
from typing import Any

import pytest

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.data.conversation import Conversation, Message, Role, ToolCall
from finetune_trainer.data.formats import parse_row
from tests.unit.trainer.data.rows_as_written import FUNCTION, GLAIVE_CHAT, OPENAI_MESSAGES, PARIS, TOOL, hermes, weighed

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
HERMES_TURNS = (
    ("human", "Weather in Paris?"),
    ("gpt", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'),
    ("tool", '<tool_response>\n{"sky": "clear"}\n</tool_response>'),
    ("gpt", "It is clear."),
)
GLAIVE_SYSTEM = "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
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


def test_fields_that_a_table_fills_with_null_are_no_arguments() -> None:
    call = {"name": "get_weather", "arguments": {"city": "Paris", "currency": None}}
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [{"function": call}]}]}
    assert parse_row(row, DatasetFormat.OPENAI).messages[1].tool_calls == (PARIS,)


def test_turns_of_weight_0_are_not_trained_on() -> None:
    conversation = parse_row(weighed(0, 1, None), DatasetFormat.OPENAI)
    assert [message.is_trained for message in conversation.messages if message.role == "assistant"] == [
        False,
        True,
        True,
    ]
