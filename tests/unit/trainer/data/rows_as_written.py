"""Rows of each format as its data sets write them, and what one conversation is that all of them can hold."""

from typing import Any

from finetune_trainer.data.conversation import ToolCall

FUNCTION = {"name": "get_weather", "description": "Weather of a city", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
PARIS = ToolCall("get_weather", {"city": "Paris"})


def hermes(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": name, "value": text} for name, text in turns], **fields}


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


def weighed(*weights: Any) -> dict[str, Any]:
    answers = [{"role": "assistant", "content": "Hello."} | ({} if one is None else {"weight": one}) for one in weights]
    return {"messages": [turn for answer in answers for turn in ({"role": "user", "content": "Hi"}, answer)]}
