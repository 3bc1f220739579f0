"""One turn, judged: what the model called against what the data calls there.

Calls of one turn are compared without regard to their order, as they are made at once. Values are compared with their
types: a text "5" is not the number 5, and true is not 1; 5 and 5.0 are the same number, as in JSON Schema.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.conversation import ToolCall
from finetune_trainer.toolcalls import ParsedTurn


@dataclass(frozen=True)
class ToolScore:
    """Whether one function that should be called in a turn was called, and was called with the right arguments."""

    called: bool
    exact: bool


@dataclass(frozen=True)
class TurnScore:
    """What one turn is worth. Where nothing should be called, the first three say nothing."""

    functions_right: bool
    exact: bool
    argument_f1: float
    should_call: bool
    calls: bool  # it calls, or tries to
    is_valid: bool  # what it calls keeps the notation
    hallucinates: bool  # it calls a function that is not among the tools
    tools: dict[str, ToolScore]


def judge(expected: Sequence[ToolCall], written: ParsedTurn, functions: frozenset[str]) -> TurnScore:
    """Compare the calls of a turn with those that it should make.

    Args:
        expected: calls of the data; none when the turn should answer.
        written: what the model wrote, taken apart.
        functions: names of the tools that the model could call.
    """
    pairs = _pair(expected, written.calls)
    wanted, made = Counter(call.name for call in expected), Counter(call.name for call in written.calls)
    complete = not written.malformed
    is_exact = complete and len(written.calls) == len(expected) and all(same for _, _, same in pairs)
    return TurnScore(
        functions_right=complete and wanted == made,
        exact=is_exact and wanted == made,
        argument_f1=_argument_f1(expected, written.calls, pairs, complete and wanted == made),
        should_call=bool(expected),
        calls=written.attempts_a_call,
        is_valid=complete,
        hallucinates=any(call.name not in functions for call in written.calls),
        tools={name: _tool_score(name, count, made, pairs) for name, count in wanted.items()},
    )


def same_value(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal in value and type."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_value(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_value, one, other))
    return type(one) is type(other) and bool(one == other)


Pair = tuple[ToolCall, ToolCall, bool]  # expected, made, and whether all arguments are the same


def _pair(expected: Sequence[ToolCall], made: Sequence[ToolCall]) -> list[Pair]:
    """Pair calls of the same function, those first that agree in most arguments."""
    candidates = [
        (_num_same(wanted, call), -abs(len(call.arguments) - len(wanted.arguments)), -i, -j)
        for i, wanted in enumerate(expected)
        for j, call in enumerate(made)
        if wanted.name == call.name
    ]
    pairs, taken_expected, taken_made = [], set(), set()
    for _, _, minus_i, minus_j in sorted(candidates, reverse=True):
        i, j = -minus_i, -minus_j
        if i not in taken_expected and j not in taken_made:
            taken_expected.add(i)
            taken_made.add(j)
            pairs.append((expected[i], made[j], same_value(expected[i].arguments, made[j].arguments)))
    return pairs


def _num_same(wanted: ToolCall, made: ToolCall) -> int:
    return sum(
        key in made.arguments and same_value(value, made.arguments[key]) for key, value in wanted.arguments.items()
    )


def _argument_f1(expected: Sequence[ToolCall], made: Sequence[ToolCall], pairs: list[Pair], names_right: bool) -> float:
    num_expected = sum(len(call.arguments) for call in expected)
    num_made = sum(len(call.arguments) for call in made)
    if num_expected + num_made == 0:
        return float(names_right)
    num_right = sum(_num_same(wanted, call) for wanted, call, _ in pairs)
    return 2 * num_right / (num_expected + num_made)


def _tool_score(name: str, count: int, made: Counter[str], pairs: list[Pair]) -> ToolScore:
    num_exact = sum(same for wanted, _, same in pairs if wanted.name == name)
    return ToolScore(called=made[name] >= count, exact=made[name] == count == num_exact)
