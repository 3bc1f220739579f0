"""The leaderboard's rules, on calls that its own checker takes or refuses.

The table was judged by the checker of bfcl-eval 2026.3.23 too (docs/LOG.md): it says the same of every row.
"""

from typing import Any

import pytest

from finetune_trainer.data.conversation import ToolCall
from finetune_trainer.workbench.bfcl_answers import as_tool, is_right

AREA = {
    "name": "triangle.area",
    "parameters": {
        "type": "dict",
        "properties": {
            "base": {"type": "integer"},
            "height": {"type": "float"},
            "unit": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "style": {"type": "dict", "properties": {"colour": {"type": "string"}}},
            "points": {"type": "array", "items": {"type": "dict"}},
            "exact": {"type": "boolean"},
        },
        "required": ["base", "height"],
    },
}
PLAY = {
    "name": "play",
    "parameters": {"type": "dict", "properties": {"song": {"type": "string"}}, "required": ["song"]},
}
FUNCTIONS = [AREA, PLAY]
ANSWER: dict[str, Any] = {
    "triangle.area": {
        "base": [10],
        "height": [5.0],
        "unit": ["units", ""],
        "tags": [["New York", "b"], ""],
        "style": [{"colour": ["red", "Dark-Red"], "width": [1, ""]}, ""],
        "points": [[{"x": [1]}, {"x": [2]}], ""],
        "exact": [True, ""],
    }
}
GIVEN = {"base": 10, "height": 5.0}

JUDGED: dict[str, tuple[dict[str, Any], bool]] = {
    "what is required": (GIVEN, True),
    "a whole number for a decimal": (GIVEN | {"height": 5}, True),
    "a decimal for a whole number": (GIVEN | {"base": 10.0}, False),
    "a number as a text": (GIVEN | {"base": "10"}, False),
    "another number": (GIVEN | {"base": 11}, False),
    "something required is missing": ({"base": 10}, False),
    "a parameter that there is not": (GIVEN | {"colour": "red"}, False),
    "an optional text, written otherwise": (GIVEN | {"unit": " UNITS."}, True),
    "another text": (GIVEN | {"unit": "metres"}, False),
    "a list, written otherwise": (GIVEN | {"tags": ["new york", "B"]}, True),
    "a list in another order": (GIVEN | {"tags": ["b", "New York"]}, False),
    "a list with a number": (GIVEN | {"tags": ["New York", 1]}, False),
    "an object": (GIVEN | {"style": {"colour": "dark red"}}, True),
    "an object with another value": (GIVEN | {"style": {"colour": "blue"}}, False),
    "an object with something missing": (GIVEN | {"style": {"width": 1}}, False),
    "an object with something more": (GIVEN | {"style": {"colour": "red", "depth": 1}}, False),
    "a list of objects": (GIVEN | {"points": [{"x": 1}, {"x": 2}]}, True),
    "a list of too few objects": (GIVEN | {"points": [{"x": 1}]}, False),
    "a truth value": (GIVEN | {"exact": True}, True),
    "the other truth value": (GIVEN | {"exact": False}, False),
}


@pytest.mark.parametrize(("arguments", "right"), JUDGED.values(), ids=JUDGED.keys())
def test_a_call_is_judged(arguments: dict[str, Any], right: bool) -> None:
    assert is_right([ToolCall("triangle.area", arguments)], [ANSWER], FUNCTIONS) is right


PLAYS = [{"play": {"song": ["one"]}}, {"play": {"song": ["two"]}}]
SEVERAL: dict[str, tuple[list[ToolCall], bool]] = {
    "both, in another order": ([ToolCall("play", {"song": "two"}), ToolCall("play", {"song": "one"})], True),
    "one of two": ([ToolCall("play", {"song": "one"})], False),
    "the same twice": ([ToolCall("play", {"song": "one"})] * 2, False),
    "one too many": ([ToolCall("play", {"song": song}) for song in ("one", "two", "two")], False),
    "another function": ([ToolCall("play", {"song": "one"}), ToolCall("stop", {"song": "two"})], False),
}


@pytest.mark.parametrize(("calls", "right"), SEVERAL.values(), ids=SEVERAL.keys())
def test_parallel_calls_are_judged_in_any_order(calls: list[ToolCall], right: bool) -> None:
    assert is_right(calls, PLAYS, FUNCTIONS) is right


def test_where_nothing_fits_nothing_may_be_called() -> None:
    assert is_right([], [], FUNCTIONS)
    assert not is_right([ToolCall("play", {"song": "one"})], [], FUNCTIONS)


def test_a_template_is_given_the_types_of_json_schema() -> None:
    tool = as_tool(AREA)
    parameters = tool["function"]["parameters"]
    assert tool["type"] == "function"
    assert (parameters["type"], parameters["properties"]["height"]["type"]) == ("object", "number")
    assert parameters["properties"]["points"]["items"]["type"] == "object"
    assert AREA["parameters"]["type"] == "dict", "what is judged stays as it was"
