"""The tool calls in what a model wrote: one parser for each notation that chat templates teach.

Read strictly, a text has to be what a server with the parser of the model's family would take for a call; read
leniently, anything that a patient person would. The parsers follow the notations of

* hermes: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, Hermes and Qwen 2.5, and every model whose
  template knows no tools (`data.template` then spells them so);
  https://github.com/NousResearch/Hermes-Function-Calling
* llama: `{"name": ..., "parameters": {...}}` as the whole turn, several parted by `;`;
  https://github.com/meta-llama/llama-models/blob/main/models/llama3_1/prompt_format.md
* mistral: `[TOOL_CALLS] [{"name": ..., "arguments": {...}, "id": ...}]`, and `[TOOL_CALLS]name[ARGS]{...}` since the
  eleventh tokenizer; https://github.com/mistralai/mistral-common
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn

from finetune_trainer.data.conversation import ToolCall


class CallStyle(StrEnum):
    """How a family of models writes a call."""

    HERMES = "hermes"
    LLAMA = "llama"
    MISTRAL = "mistral"


@dataclass(frozen=True)
class ParsedTurn:
    """What the assistant said, what it called, and what looked like a call and could not be read as one."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    malformed: tuple[str, ...] = ()

    @property
    def attempts_a_call(self) -> bool:
        """Whether the turn holds a call or something that was to be one."""
        return bool(self.calls or self.malformed)


def parse_turn(text: str, style: CallStyle, *, lenient: bool = False) -> ParsedTurn:
    """Take a turn of the assistant apart.

    Args:
        text: what the model wrote, special tokens included; the token that ended the turn may still be there.
        style: of the model's chat template.
        lenient: where the notation is not kept, look for calls in all other notations, in code blocks, and as Python
            literals. Never fewer calls than strictly.
    """
    text = _END_OF_TURN.sub("", text)
    strict = _PARSERS[style](text)
    if not lenient or (strict.calls and not strict.malformed):
        return strict
    found = _read_leniently(text)
    return found if len(found.calls) > len(strict.calls) else strict


def find_style(written: str, calls: tuple[ToolCall, ...]) -> CallStyle | None:
    """Return the style that reads exactly `calls` in what a chat template wrote of them, or None."""
    return next((style for style in CallStyle if parse_turn(written, style) == ParsedTurn("", calls)), None)


_END_OF_TURN = re.compile(r"(<\|(eot_id|eom_id|im_end|endoftext|end_of_text)\|>|</s>|\s)+\Z")


# --- hermes -----------------------------------------------------------------------------------------------------------

_HERMES_OPEN, _HERMES_CLOSE = "<tool_call>", "</tool_call>"
_HERMES_BLOCK = re.compile(r"<tool_call>(.*?)(</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)


def _parse_hermes(text: str) -> ParsedTurn:
    calls, malformed = [], []
    for block, close in _HERMES_BLOCK.findall(text):
        call = _strict_call(block, ("arguments",)) if close else None
        if call is None:
            malformed.append(block.strip())
        else:
            calls.append(call)
    return ParsedTurn(_HERMES_BLOCK.sub("", text).strip(), tuple(calls), tuple(malformed))


# --- llama ------------------------------------------------------------------------------------------------------------

_PYTHON_TAG = "<|python_tag|>"
_LLAMA_KEYS = ("parameters", "arguments")


def _parse_llama(text: str) -> ParsedTurn:
    body = text.strip().removeprefix(_PYTHON_TAG).strip()
    if not body.startswith("{") and _PYTHON_TAG not in text:
        return ParsedTurn(text.strip())
    calls = []
    rest = body
    while rest:
        try:
            value, end = _DECODER.raw_decode(rest)
        except (ValueError, RecursionError):
            break
        call = _as_call(value, _LLAMA_KEYS)
        rest = rest[end:].lstrip()
        # Between two calls there is a semicolon, and nothing else; behind the last one nothing.
        if call is None or (rest and not rest.startswith(";")):
            break
        calls.append(call)
        rest = rest.removeprefix(";").lstrip()
    else:
        return ParsedTurn("", tuple(calls))
    is_attempt = _PYTHON_TAG in text or _LOOKS_LIKE_A_CALL.search(body)
    return ParsedTurn("", (), (body,)) if is_attempt else ParsedTurn(body)


# An answer may well be JSON; it is a call, or was to be one, when it names something and gives it arguments.
_LOOKS_LIKE_A_CALL = re.compile(r"""\{\s*["'](name|function)["']\s*:.*["'](parameters|arguments)["']\s*:""", re.DOTALL)


# --- mistral ----------------------------------------------------------------------------------------------------------

_MISTRAL_OPEN = "[TOOL_CALLS]"
_MISTRAL_NAMED = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*(?=\{)")


def _parse_mistral(text: str) -> ParsedTurn:
    said, *blocks = text.split(_MISTRAL_OPEN)
    calls: list[ToolCall] = []
    malformed = []
    for block in blocks:
        found = _mistral_list(block) if block.lstrip().startswith("[") else _mistral_named(block)
        if found is None:
            malformed.append(block.strip())
        else:
            calls += found
    return ParsedTurn(said.strip(), tuple(calls), tuple(malformed))


def _mistral_list(block: str) -> list[ToolCall] | None:
    values = _json(block)
    if not isinstance(values, list) or not values:
        return None
    calls = [_as_call(value, ("arguments",)) for value in values]
    return [call for call in calls if call is not None] if None not in calls else None


def _mistral_named(block: str) -> list[ToolCall] | None:
    named = _MISTRAL_NAMED.match(block)
    arguments = _json(block[named.end() :]) if named else None
    return [ToolCall(named[1], arguments)] if named and isinstance(arguments, dict) else None


# --- JSON, as the standard has it -------------------------------------------------------------------------------------


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _json(text: str) -> Any:
    """Return what a JSON text says, or None where it is none."""
    try:
        return _DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        return None


def _strict_call(text: str, argument_keys: tuple[str, ...]) -> ToolCall | None:
    return _as_call(_json(text), argument_keys)


def _as_call(value: Any, argument_keys: tuple[str, ...]) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = next((value[key] for key in argument_keys if key in value), None)
    return ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None


# --- leniently --------------------------------------------------------------------------------------------------------

_LENIENT_ARGUMENT_KEYS = ("arguments", "parameters", "args", "params", "input")
_LENIENT_NAME_KEYS = ("name", "function", "tool", "function_name", "tool_name")
_LENIENT_MARKS = re.compile(
    r"```\w*|</?tool_calls?>|</?functioncall>|<function=|<\|python_tag\|>|\[/?TOOL_CALLS\]|\[ARGS\]"
)
# A model that has lost its way may write nothing but braces: what begins with each would be read to the end.
MAX_LENIENT_CHARACTERS = 20_000
MAX_LENIENT_OBJECTS = 64


def _read_leniently(text: str) -> ParsedTurn:
    body = text[:MAX_LENIENT_CHARACTERS]
    calls: list[ToolCall] = []
    said = []
    position = 0
    for start, end, found in _structures(body):
        said.append(body[position:start])
        position = end
        calls += found
    said.append(body[position:])
    if not calls:
        calls = _python_calls(_LENIENT_MARKS.sub("", body).strip())
        said = [] if calls else said
    return ParsedTurn(_LENIENT_MARKS.sub("", "".join(said)).strip(" \n;,[]"), tuple(calls))


def _structures(text: str) -> Iterator[tuple[int, int, list[ToolCall]]]:
    """Yield where calls stand that are written as objects, the outermost first: start, end, and the calls."""
    position = 0
    for _ in range(MAX_LENIENT_OBJECTS):
        start = text.find("{", position)
        if start < 0:
            return
        value, end = _object_at(text, start)
        named = _MISTRAL_NAME_BEFORE.search(text, position, start)
        call = _lenient_call(value)
        if call is None and isinstance(value, dict) and named:
            call = ToolCall(named[1], value)
            start = named.start()
        if call is not None:
            yield start, end, [call]
            position = end
        else:
            position = end if value is not None and not _holds_calls(value) else start + 1


_MISTRAL_NAME_BEFORE = re.compile(r"(?:\[TOOL_CALLS\]\s*|<function=)([A-Za-z0-9_.-]+)(?:\[ARGS\]|>)?\s*\Z")


def _object_at(text: str, start: int) -> tuple[Any, int]:
    """Return the JSON object or Python dictionary that begins at `start`, and its end; None where there is none."""
    try:
        value, length = _DECODER.raw_decode(text[start:])
    except (ValueError, RecursionError):
        end = _matching_brace(text, start)
        return _literal(text[start:end]), end
    return value, start + length


def _matching_brace(text: str, start: int) -> int:
    """Return the end of what begins with the brace at `start`; where braces are missing, the next mark or the end."""
    depth, quote, escaped = 0, "", False
    for position in range(start, len(text)):
        letter = text[position]
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "{}":
            depth += 1 if letter == "{" else -1
            if depth == 0:
                return position + 1
    mark = _LENIENT_MARKS.search(text, start)
    return mark.start() if mark else len(text)


def _literal(text: str) -> Any:
    """Read a Python literal, with JSON's names of constants too, and closing braces added where they are missing."""
    for closing in ("", "}", "}}"):
        if (value := _json(text + closing)) is not None:
            return value
        try:
            return ast.literal_eval(_JSON_NAMES.sub(lambda name: _PYTHON_NAMES[name[0]], text + closing))
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
    return None


_PYTHON_NAMES = {"true": "True", "false": "False", "null": "None"}
_JSON_NAMES = re.compile(r"""(?<=[:,\[\s])(true|false|null)(?=\s*[,}\]])""")


def _lenient_call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    inner = value.get("function")
    if isinstance(inner, dict):
        return _lenient_call(inner)
    name = next((value[key] for key in _LENIENT_NAME_KEYS if isinstance(value.get(key), str)), "")
    arguments = next((value[key] for key in _LENIENT_ARGUMENT_KEYS if key in value), None)
    if isinstance(arguments, str):
        arguments = _json(arguments) if arguments.strip() else {}
    if not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments) if _is_json(arguments) else None


def _holds_calls(value: Any) -> bool:
    """Whether calls may be inside of an object that is none: `{"tool_calls": [...]}`."""
    return isinstance(value, dict) and any(
        isinstance(item, list) and any(_lenient_call(entry) for entry in item) for item in value.values()
    )


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _python_calls(text: str) -> list[ToolCall]:
    """Read `name(key=value)`, or a list of such, as Llama 3.2 and 4 write calls; [] where the text is anything else."""
    try:
        expression = ast.parse(text, mode="eval").body
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    nodes = expression.elts if isinstance(expression, ast.List) else [expression]
    calls = [_python_call(node) for node in nodes]
    return [call for call in calls if call is not None] if None not in calls else []


def _python_call(node: ast.expr) -> ToolCall | None:
    if not isinstance(node, ast.Call) or node.args:
        return None
    try:
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
    except (ValueError, TypeError, MemoryError, RecursionError):
        return None
    # Llama 3.1 writes its built-in tools so: brave_search.call(query="...").
    name = ast.unparse(node.func).removesuffix(".call")
    return ToolCall(name, arguments) if re.fullmatch(r"[\w.]+", name) and _is_json(arguments) else None


_PARSERS: dict[CallStyle, Callable[[str], ParsedTurn]] = {
    CallStyle.HERMES: _parse_hermes,
    CallStyle.LLAMA: _parse_llama,
    CallStyle.MISTRAL: _parse_mistral,
}
