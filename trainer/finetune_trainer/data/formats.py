"""How rows spell conversations: one parser a format, all into the same inner form.

* hermes: https://huggingface.co/datasets/NousResearch/hermes-function-calling-v1
* glaive: https://huggingface.co/datasets/glaiveai/glaive-function-calling-v2
* openai: https://platform.openai.com/docs/guides/supervised-fine-tuning (messages, tools, tool_calls)
* sharegpt: https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md (conversations with function_call and
  observation turns, tools beside them)
* alpaca: https://github.com/tatsu-lab/stanford_alpaca#data-release (instruction, input, output)
"""

import ast
import json
import re
from collections.abc import Callable
from typing import Any

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.data.conversation import (
    BadRowError,
    Conversation,
    JsonObject,
    Message,
    Role,
    ToolCall,
    make_conversation,
)

# The field by which each format is told apart, and the type of its value.
SIGNATURES: dict[DatasetFormat, tuple[str, type]] = {
    DatasetFormat.HERMES: ("conversations", list),
    DatasetFormat.GLAIVE: ("chat", str),
    DatasetFormat.OPENAI: ("messages", list),
    DatasetFormat.SHAREGPT: ("conversations", list),
    DatasetFormat.ALPACA: ("instruction", str),
}
# Roles and keys that only one of the two formats with `conversations` has.
_SHAREGPT_TURNS = ("function_call", "observation")


def parse_row(row: JsonObject, dataset_format: DatasetFormat) -> Conversation:
    """Understand a row that is written in a format. A list may be spelt as a text of JSON, as tables have it.

    Raises:
        BadRowError: the row is not in this format (the message says which one it looks like), or is malformed.
    """
    field, kind = SIGNATURES[dataset_format]
    value = row.get(field)
    if kind is list and isinstance(value, str):
        value = _literal(value, field)
        row = {**row, field: value}
    if not isinstance(value, kind):
        looks_like = looks_like_format(row)
        advice = f"; the row looks like format {looks_like}: set format: {looks_like}" if looks_like else ""
        raise BadRowError(
            f"is not in format {dataset_format}: no {_TYPE_NAMES[kind]} `{field}` among its fields "
            f"({', '.join(sorted(map(str, row))) or 'none'}){advice}"
        )
    return _PARSERS[dataset_format](row)


def looks_like_format(row: JsonObject) -> DatasetFormat | None:
    """Return the format that a row seems to be written in, judged by its fields; None when it is like none."""
    turns = row.get("conversations")
    if isinstance(turns, list) and any(
        isinstance(turn, dict) and turn.get("from") in _SHAREGPT_TURNS for turn in turns
    ):
        return DatasetFormat.SHAREGPT
    return next((name for name, (field, kind) in SIGNATURES.items() if isinstance(row.get(field), kind)), None)


# --- hermes ----------------------------------------------------------------------------------------------------------

_HERMES_ROLES = {
    "system": Role.SYSTEM,
    "human": Role.USER,
    "user": Role.USER,
    "gpt": Role.ASSISTANT,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
}
_TOOLS = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_TOOL_RESPONSE = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
# Lines that explain how to call a tool in the Hermes notation. Whoever renders the conversation explains it anew, in
# the notation of the model's own template.
_EXPLANATION = re.compile(r"</?tools>|</?tool_call>|pydantic model json schema|function[- ]calling AI", re.IGNORECASE)


def _parse_hermes(row: JsonObject) -> Conversation:
    tools = _tools_of(row.get("tools"))
    messages: list[Message] = []
    for number, turn in enumerate(row["conversations"], start=1):
        where = f"conversations[{number}]"
        role = _role(turn, "from", _HERMES_ROLES, where)
        text = _text(turn.get("value"), f"{where}.value")
        if role is Role.SYSTEM:
            tools = tools or [tool for block in _TOOLS.findall(text) for tool in _tools_of(block)]
        messages += _hermes_messages(role, text, where)
    return make_conversation(messages, tools)


def _hermes_messages(role: Role, text: str, where: str) -> list[Message]:
    match role:
        case Role.SYSTEM:
            system = _without_explanation(text)
            return [Message(role, system)] if system else []
        case Role.TOOL:
            return [Message(role, answer.strip()) for answer in _TOOL_RESPONSE.findall(text) or [text]]
        case Role.ASSISTANT:
            calls = tuple(
                _tool_call(_literal(block, f"{where}: tool_call"), where) for block in _TOOL_CALL.findall(text)
            )
            if text.count("<tool_call>") != len(calls):
                raise BadRowError(f"{where}: a <tool_call> has no matching </tool_call>: close it")
            return [Message(role, _TOOL_CALL.sub("", text).strip() if calls else text, calls)]
        case _:
            return [Message(role, text)]


def _without_explanation(system: str) -> str:
    if "<tools>" not in system:
        return system
    text = _TOOL_CALL.sub("<tool_call>", _TOOLS.sub("<tools>", system))
    return "\n".join(line for line in text.splitlines() if not _EXPLANATION.search(line)).strip()


# --- sharegpt --------------------------------------------------------------------------------------------------------

_SHAREGPT_ROLES = _HERMES_ROLES | {
    "chatgpt": Role.ASSISTANT,
    "function_call": Role.ASSISTANT,
    "observation": Role.TOOL,
    "function_response": Role.TOOL,
}


def _parse_sharegpt(row: JsonObject) -> Conversation:
    system = row.get("system")
    messages = [Message(Role.SYSTEM, system)] if isinstance(system, str) and system.strip() else []
    for number, turn in enumerate(row["conversations"], start=1):
        where = f"conversations[{number}]"
        role = _role(turn, "from", _SHAREGPT_ROLES, where)
        text = _text(turn.get("value"), f"{where}.value")
        if turn["from"] == "function_call":
            calls = _literal(text, f"{where}.value")
            called = tuple(_tool_call(call, f"{where}.value") for call in _listed(calls))
            messages.append(Message(role, "", called))
        else:
            messages.append(Message(role, text))
    return make_conversation(messages, _tools_of(row.get("tools")))


# --- alpaca ----------------------------------------------------------------------------------------------------------


def _parse_alpaca(row: JsonObject) -> Conversation:
    system, context = row.get("system") or "", row.get("input") or ""
    messages = [Message(Role.SYSTEM, system)] if _text(system, "system").strip() else []
    for number, pair in enumerate(row.get("history") or [], start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRowError(f"history[{number}]: expected a list of two texts, an instruction and its answer")
        question, answer = (_text(words, f"history[{number}]") for words in pair)
        messages += [Message(Role.USER, question), Message(Role.ASSISTANT, answer)]
    asked = row["instruction"] + (f"\n\n{context}" if _text(context, "input").strip() else "")
    answered = _text(row.get("output"), "output")
    return make_conversation([*messages, Message(Role.USER, asked), Message(Role.ASSISTANT, answered)], [])


# --- glaive ----------------------------------------------------------------------------------------------------------

_GLAIVE_ROLES = {"USER": Role.USER, "ASSISTANT": Role.ASSISTANT, "FUNCTION RESPONSE": Role.TOOL}
_GLAIVE_TURN = re.compile(r"^[ \t]*(USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
_GLAIVE_CALL = re.compile(r"<functioncall>(.*?)(?=<functioncall>|<\|endoftext\|>|\Z)", re.DOTALL)
# The arguments are JSON inside single quotes, so that the whole is not JSON.
_GLAIVE_QUOTED = re.compile(r"""\{\s*"name"\s*:\s*"([^"]+)"\s*,\s*"arguments"\s*:\s*'(.*)'\s*\}\s*""", re.DOTALL)
_GLAIVE_END = "<|endoftext|>"
_GLAIVE_EXPLANATION = re.compile(r"\s*with access to the following functions\. Use them if required\s*-?\s*")


def _parse_glaive(row: JsonObject) -> Conversation:
    system, tools = _glaive_system(str(row.get("system") or ""))
    messages = [Message(Role.SYSTEM, system)] if system else []
    parts = _GLAIVE_TURN.split(row["chat"])
    if parts[0].strip():
        raise BadRowError(f"chat: begins with {parts[0].strip()[:40]!r}; expected USER:")
    for number, (name, text) in enumerate(zip(parts[1::2], parts[2::2], strict=True), start=1):
        role = _GLAIVE_ROLES[name]
        calls: tuple[ToolCall, ...] = ()
        if role is Role.ASSISTANT:
            calls = tuple(_glaive_call(block, f"chat: turn {number}") for block in _GLAIVE_CALL.findall(text))
        said = _GLAIVE_CALL.sub("", text) if calls else text
        messages.append(Message(role, said.replace(_GLAIVE_END, "").strip(), calls))
    return make_conversation(messages, tools)


def _glaive_system(system: str) -> tuple[str, list[JsonObject]]:
    text, brace, schemas = system.removeprefix("SYSTEM:").partition("{")
    tools: list[JsonObject] = []
    rest = (brace + schemas).strip()
    while rest:
        # Schemas stand behind each other without a separator.
        try:
            schema, end = json.JSONDecoder().raw_decode(rest)
        except json.JSONDecodeError as error:
            raise BadRowError(f"system: function {len(tools) + 1} is not JSON: {error}") from error
        tools.append(_tool(schema))
        rest = rest[end:].lstrip(" \t\r\n,")
    return _GLAIVE_EXPLANATION.sub(".", text).strip(), tools


def _glaive_call(block: str, where: str) -> ToolCall:
    quoted = _GLAIVE_QUOTED.fullmatch(block.strip())
    if quoted is None:
        return _tool_call(_literal(block, f"{where}: <functioncall>"), where)
    arguments = _literal(quoted[2].replace("\\'", "'"), f"{where}: <functioncall>")
    return _tool_call({"name": quoted[1], "arguments": arguments}, where)


# --- openai ----------------------------------------------------------------------------------------------------------

_OPENAI_ROLES = {role.value: role for role in Role} | {"developer": Role.SYSTEM}


def _parse_openai(row: JsonObject) -> Conversation:
    messages: list[Message] = []
    for number, turn in enumerate(row["messages"], start=1):
        where = f"messages[{number}]"
        role = _role(turn, "role", _OPENAI_ROLES, where)
        calls = _openai_calls(turn, where) if role is Role.ASSISTANT else ()
        content = _openai_content(turn.get("content"), where)
        messages.append(Message(role, content, calls, role is not Role.ASSISTANT or _openai_weight(turn, where)))
    _sort_answers(row["messages"], messages)
    return make_conversation(messages, _tools_of(row.get("tools")))


def _openai_weight(turn: JsonObject, where: str) -> bool:
    """Return whether a turn of the assistant is trained on; one that says nothing of it is."""
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise BadRowError(f"{where}.weight: {weight!r} is neither 0 nor 1: 0 trains not on this turn, 1 does")
    return weight != 0


def _openai_calls(turn: JsonObject, where: str) -> tuple[ToolCall, ...]:
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRowError(f"{where}.tool_calls: expected a list of objects")
    # Arguments that are objects, not texts of JSON, come from a table, which fills them with nulls.
    return tuple(
        _tool_call(_without_nulls(call.get("function", call)), f"{where}.tool_calls[{number}]")
        for number, call in enumerate(calls, start=1)
    )


def _sort_answers(turns: list[JsonObject], messages: list[Message]) -> None:
    """Bring the answers of parallel calls, which may come in any order, into the order of the calls."""
    for position, message in enumerate(messages):
        behind = slice(position + 1, position + 1 + len(message.tool_calls))
        if len(message.tool_calls) < 2:
            continue
        call_ids = [call.get("id") for call in turns[position]["tool_calls"]]
        answers = dict(zip((str(turn.get("tool_call_id")) for turn in turns[behind]), messages[behind], strict=True))
        if len(answers) == len(call_ids) and set(answers) == set(map(str, call_ids)):
            messages[behind] = [answers[str(call_id)] for call_id in call_ids]


def _openai_content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise BadRowError(f"{where}.content: expected a text or a list of parts of type text")


# --- roles and tools, in whatever notation ----------------------------------------------------------------------------


def _role(turn: Any, field: str, roles: dict[str, Role], where: str) -> Role:
    if not isinstance(turn, dict):
        raise BadRowError(f"{where}: expected an object, found {_kind(turn)}")
    name = turn.get(field)
    if not isinstance(name, str) or name not in roles:
        advice = ": set format: sharegpt" if name in _SHAREGPT_TURNS else ""
        raise BadRowError(f"{where}.{field}: {name!r} is none of {', '.join(roles)}{advice}")
    return roles[name]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"{where}: expected a text, found {_kind(value)}")
    return value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _tools_of(value: Any) -> list[JsonObject]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    tools = _literal(value, "tools") if isinstance(value, str) else value
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list):
        raise BadRowError(f"tools: expected a list of functions, found {_kind(tools)}")
    return [_tool(tool) for tool in tools]


def _tool(tool: Any) -> JsonObject:
    """Bring a tool into OpenAI's notation, which chat templates expect."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRowError("tools: a function has no `name`")
    _require_json(function, f"tools: {function['name']}")
    return {"type": "function", "function": _without_nulls(function)}


def _without_nulls(value: Any) -> Any:
    # NB: a Parquet file gives every object the fields of all others, filled with null.
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _tool_call(call: Any, where: str) -> ToolCall:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise BadRowError(f"{where}: a tool call has no `name`")
    arguments = call.get("arguments")
    what = f"{where}: arguments of {call['name']}"
    if isinstance(arguments, str):
        arguments = _literal(arguments, what) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise BadRowError(f"{what}: expected an object, found {_kind(arguments)}")
    _require_json(arguments, what)
    return ToolCall(call["name"], arguments)


def _literal(text: str, what: str) -> Any:
    """Read JSON or, as parts of the Hermes data are written, a Python literal."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise BadRowError(f"{what}: is not JSON: {error}: {text.strip()[:80]!r}") from error


def _require_json(value: Any, what: str) -> None:
    """Refuse what a Python literal or a Parquet file can hold and JSON cannot: sets, bytes, dates."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRowError(f"{what}: cannot be written as JSON: {error}") from error


def _kind(value: object) -> str:
    return _TYPE_NAMES.get(type(value), type(value).__name__)


_TYPE_NAMES: dict[type, str] = {list: "list", str: "text", dict: "object", type(None): "nothing"}
_PARSERS: dict[DatasetFormat, Callable[[JsonObject], Conversation]] = {
    DatasetFormat.HERMES: _parse_hermes,
    DatasetFormat.GLAIVE: _parse_glaive,
    DatasetFormat.OPENAI: _parse_openai,
    DatasetFormat.SHAREGPT: _parse_sharegpt,
    DatasetFormat.ALPACA: _parse_alpaca,
}
