"""Whether a conversation that could be read is fit to be learnt from."""

import json
from difflib import get_close_matches
from functools import lru_cache

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from finetune_trainer.data.conversation import BadRowError, Conversation, Defect, JsonObject, ToolCall

# A conversation of 4 million characters has about a million tokens, more than any supported model reads.
MAX_CHARACTERS = 4 << 20
SHOWN_CHARACTERS = 160
SHOWN_NAMES = 8


def check_size(conversation: Conversation) -> None:
    """Refuse a conversation that is larger than any model reads, before minutes are spent on its tokens.

    Raises:
        BadRowError: naming the largest part of it.
    """
    sizes = {
        f"turn {number} ({message.role})": len(message.content) + sum(len(repr(call)) for call in message.tool_calls)
        for number, message in enumerate(conversation.messages, start=1)
    }
    sizes["tools"] = sum(len(repr(tool)) for tool in conversation.tools)
    total = sum(sizes.values())
    if total > MAX_CHARACTERS:
        largest = max(sizes, key=lambda part: sizes[part])
        raise BadRowError(
            f"has {total:,} characters, of which {sizes[largest]:,} in {largest}; {MAX_CHARACTERS:,} are read at most: "
            "shorten it, or leave it out",
            Defect.TOO_LARGE,
        )


def check_calls(conversation: Conversation) -> None:
    """Refuse calls of functions that are not among the tools, and arguments that break their JSON schemas.

    Raises:
        BadRowError: naming the turn, the function and the argument.
    """
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in conversation.tools}
    for number, message in enumerate(conversation.messages, start=1):
        for call in message.tool_calls:
            if call.name not in schemas:
                raise BadRowError(f"turn {number}: {_unknown(call.name, list(schemas))}", Defect.UNKNOWN_FUNCTION)
            if problem := _broken(call, schemas[call.name]):
                raise BadRowError(f"turn {number}: {problem}", Defect.WRONG_ARGUMENTS)


def _unknown(name: str, known: list[str]) -> str:
    if not known:
        return f"calls {name}, but the row has no tools: add the functions that can be called to `tools`"
    if similar := get_close_matches(name, known, n=1):
        return f"calls {name}, which is not among the row's tools: is it {similar[0]}?"
    names = ", ".join(known[:SHOWN_NAMES]) + (", ..." if len(known) > SHOWN_NAMES else "")
    return f"calls {name}, which is not among the row's tools ({names}): add it to them, or correct the call"


def _broken(call: ToolCall, schema: JsonObject | None) -> str | None:
    """Say what is wrong with a call's arguments, or return None."""
    validator = _validator(json.dumps(schema, sort_keys=True)) if schema else None
    if validator is None:
        return None
    try:
        error: ValidationError | None = next(validator.iter_errors(call.arguments), None)
    except (Unresolvable, RecursionError) as problem:
        return f"the schema of {call.name} cannot be followed: {problem}: mend its references"
    if error is None:
        return None
    path = "".join(f".{part}" for part in error.absolute_path)
    words = error.message if len(error.message) <= SHOWN_CHARACTERS else f"{error.message[:SHOWN_CHARACTERS]}..."
    return f"arguments{path} of {call.name}: {words}: correct the call, or the tool's `parameters`"


@lru_cache(maxsize=4096)
def _validator(schema: str) -> Draft202012Validator | None:
    """Return a validator of a schema; None for one that is no JSON Schema (`"type": "dict"`): nothing breaks it."""
    parsed = json.loads(schema)
    try:
        Draft202012Validator.check_schema(parsed)
    except (SchemaError, RecursionError):
        return None
    # NB: without a registry of its own, jsonschema fetches what a `$ref` names from the network.
    return Draft202012Validator(parsed, registry=Registry())
