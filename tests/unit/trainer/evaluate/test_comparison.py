"""One turn, judged."""

from typing import Any

import pytest

from finetune_trainer.data.conversation import ToolCall
from finetune_trainer.evaluate.comparison import TurnScore, judge, same_value
from finetune_trainer.toolcalls import ParsedTurn

FUNCTIONS = frozenset({"weather", "time", "stop"})
PARIS = ToolCall("weather", {"city": "Paris", "days": 2})
OSLO = ToolCall("weather", {"city": "Oslo", "days": 2})
NOON = ToolCall("time", {"zone": "UTC"})
STOP = ToolCall("stop", {})


def written(*calls: ToolCall, malformed: tuple[str, ...] = ()) -> ParsedTurn:
    return ParsedTurn("", calls, malformed)


# expected, written, functions right, all exact, F1 of the arguments
CALLING: dict[str, tuple[list[ToolCall], ParsedTurn, bool, bool, float]] = {
    "just right": ([PARIS], written(PARIS), True, True, 1.0),
    "two calls in another order": ([PARIS, NOON], written(NOON, PARIS), True, True, 1.0),
    "two calls of one function in another order": ([PARIS, OSLO], written(OSLO, PARIS), True, True, 1.0),
    "one argument wrong": ([PARIS], written(ToolCall("weather", {"city": "Paris", "days": 3})), True, False, 0.5),
    "a number as a text": ([PARIS], written(ToolCall("weather", {"city": "Paris", "days": "2"})), True, False, 0.5),
    "one argument missing": ([PARIS], written(ToolCall("weather", {"city": "Paris"})), True, False, 2 / 3),
    "one argument too many": ([NOON], written(ToolCall("time", {"zone": "UTC", "x": 1})), True, False, 2 / 3),
    "another function": ([PARIS], written(NOON), False, False, 0.0),
    "one call of two": ([PARIS, NOON], written(PARIS), False, False, 4 / 5),
    "one call too many": ([PARIS], written(PARIS, NOON), False, False, 4 / 5),
    "the same call twice": ([PARIS], written(PARIS, PARIS), False, False, 2 / 3),
    "no call": ([PARIS], written(), False, False, 0.0),
    "a call that cannot be read": ([PARIS], written(malformed=("{",)), False, False, 0.0),
    "a right call and one that cannot be read": ([PARIS], written(PARIS, malformed=("{",)), False, False, 1.0),
    "a function without arguments": ([STOP], written(STOP), True, True, 1.0),
    "a function without arguments, not called": ([STOP], written(), False, False, 0.0),
}


@pytest.mark.parametrize(
    ("expected", "turn", "functions_right", "exact", "argument_f1"), CALLING.values(), ids=CALLING.keys()
)
def test_a_turn_that_should_call(
    expected: list[ToolCall], turn: ParsedTurn, functions_right: bool, exact: bool, argument_f1: float
) -> None:
    score = judge(expected, turn, FUNCTIONS)
    assert (score.functions_right, score.exact) == (functions_right, exact)
    assert score.argument_f1 == pytest.approx(argument_f1)
    assert score.should_call


def test_a_turn_that_should_answer_may_not_call() -> None:
    assert judge([], written(), FUNCTIONS) == TurnScore(True, True, 1.0, False, False, True, False, {})
    called = judge([], written(NOON), FUNCTIONS)
    assert (called.should_call, called.calls) == (False, True)


def test_a_function_that_is_not_among_the_tools_is_hallucinated() -> None:
    assert judge([PARIS], written(ToolCall("rain", {})), FUNCTIONS).hallucinates
    assert not judge([PARIS], written(NOON), FUNCTIONS).hallucinates


def test_a_turn_is_judged_for_each_function_that_it_should_call() -> None:
    score = judge([PARIS, OSLO, NOON], written(PARIS, OSLO, ToolCall("time", {})), FUNCTIONS)
    assert {name: (tool.called, tool.exact) for name, tool in score.tools.items()} == {
        "weather": (True, True),
        "time": (True, False),
    }
    assert not judge([PARIS, OSLO], written(PARIS), FUNCTIONS).tools["weather"].called


VALUES: dict[str, tuple[Any, Any, bool]] = {
    "a number written as a decimal": (5, 5.0, True),
    "a number and its text": (5, "5", False),
    "true and one": (True, 1, False),
    "false and zero": (0, False, False),
    "true and true": (True, True, True),
    "null and an empty text": (None, "", False),
    "null and null": (None, None, True),
    "texts that differ in case": ("Paris", "paris", False),
    "lists in another order": ([1, 2], [2, 1], False),
    "lists of equal values": ([1, [2.0]], [1.0, [2]], True),
    "objects in another order": ({"a": 1, "b": [True]}, {"b": [True], "a": 1}, True),
    "objects of which one has more": ({"a": 1}, {"a": 1, "b": 2}, False),
    "an object and a list": ({}, [], False),
    "true deep inside": ({"a": [True]}, {"a": [1]}, False),
}


@pytest.mark.parametrize(("one", "other", "same"), VALUES.values(), ids=VALUES.keys())
def test_values_are_compared_with_their_types(one: Any, other: Any, same: bool) -> None:
    assert same_value(one, other) is same
    assert same_value(other, one) is same
