"""The rules by which the Berkeley Function Calling Leaderboard judges calls by their syntax.

Every parameter has a list of values that are right; an empty text among them means that it may be left out. Texts are
compared without case, spaces and some punctuation.
https://github.com/ShishirPatil/gorilla/tree/main/berkeley-function-call-leaderboard (eval_checker/ast_eval)
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_trainer.data.conversation import JsonObject, ToolCall

TYPES: Mapping[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
# The names that JSON Schema, and so every chat template, has for them.
SCHEMA_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
MAY_BE_MISSING = ""

Answer = Mapping[str, Mapping[str, Sequence[Any]]]  # {function: {parameter: right values}}


def is_right(calls: Sequence[ToolCall], answers: Sequence[Answer], functions: Sequence[JsonObject]) -> bool:
    """Whether calls are those that are asked for, in any order; no answers mean that nothing should be called."""
    if len(calls) != len(answers):
        return False
    left = list(calls)
    for answer in answers:
        match = next((call for call in left if _matches(call, answer, functions)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _matches(call: ToolCall, answer: Answer, functions: Sequence[JsonObject]) -> bool:
    [(name, right_values)] = answer.items()
    function = next((function for function in functions if function["name"] == name), None)
    if call.name != name or function is None:
        return False
    parameters = function["parameters"]["properties"]
    if any(required not in call.arguments for required in function["parameters"].get("required", ())):
        return False
    if any(key not in parameters or key not in right_values for key in call.arguments):
        return False
    if any(key not in call.arguments and MAY_BE_MISSING not in values for key, values in right_values.items()):
        return False
    return all(_is_value(value, right_values[key], parameters[key]) for key, value in call.arguments.items())


def _is_value(value: Any, right: Sequence[Any], parameter: JsonObject) -> bool:
    expected = TYPES[parameter["type"]]
    if expected is float and type(value) is int:
        value = float(value)
    # Where the right values are of another type than the schema has, they are names of variables.
    of_answers = next((type(answer) for answer in right if answer != MAY_BE_MISSING), None)
    if type(value) is not expected and type(value) is not of_answers:
        return False
    if of_answers is not None and of_answers is not expected:
        return value in right
    if isinstance(value, dict):
        return any(_is_dictionary(value, answer) for answer in right if answer != MAY_BE_MISSING)
    if isinstance(value, list):
        return any(_is_list(value, answer, parameter) for answer in right if isinstance(answer, list))
    return _plain(value) in [_plain(answer) for answer in right]


def _is_list(value: list[Any], answer: list[Any], parameter: JsonObject) -> bool:
    inner = TYPES.get(parameter.get("items", {}).get("type", ""))
    if inner is dict:
        same_length = len(value) == len(answer)
        return same_length and all(
            isinstance(item, dict) and _is_dictionary(item, right) for item, right in zip(value, answer, strict=True)
        )
    allowed = {inner, *map(type, answer)}
    return all(type(item) in allowed for item in value) and list(map(_plain, value)) == list(map(_plain, answer))


def _is_dictionary(value: Mapping[str, Any], right: Mapping[str, Sequence[Any]]) -> bool:
    if any(key not in value and MAY_BE_MISSING not in values for key, values in right.items()):
        return False
    return all(key in right and _plain(item) in [_plain(one) for one in right[key]] for key, item in value.items())


def _plain(value: Any) -> Any:
    """Return a text without case and the punctuation that people write one way or the other; others as they are."""
    if not isinstance(value, str):
        return value
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')


def as_tool(function: JsonObject) -> JsonObject:
    """Return a function of the leaderboard as a tool in OpenAI's notation, its types by their JSON Schema names."""
    return {"type": "function", "function": _with_schema_types(function)}


def _with_schema_types(value: Any) -> Any:
    if isinstance(value, dict):
        named = {key: _with_schema_types(item) for key, item in value.items()}
        if isinstance(value.get("type"), str):
            named["type"] = SCHEMA_TYPES.get(value["type"], value["type"])
        return named
    return [_with_schema_types(item) for item in value] if isinstance(value, list) else value
