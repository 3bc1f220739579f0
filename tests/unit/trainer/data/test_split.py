"""Which rows are held out, and how often the others are trained on."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.data.conversation import Conversation, Message, Role, ToolCall
from finetune_trainer.data.formats import parse_row
from finetune_trainer.data.split import fingerprint, is_held_out, num_repetitions

TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": name}} for name in ("add", "divide")]


def chat(answer: str, *calls: ToolCall, tools: tuple[dict[str, Any], ...] = ()) -> Conversation:
    return Conversation((Message(Role.USER, "Hi"), Message(Role.ASSISTANT, answer, calls)), tools)


MANY = [fingerprint(chat(f"answer {number}")) for number in range(20_000)]


def test_a_row_has_the_same_fingerprint_in_every_version_of_the_trainer() -> None:
    # From coreutils: printf '%s' '[{"content":"Hi","role":"user","tool_calls":[]},...]' | sha256sum | cut -c1-16
    assert f"{fingerprint(chat('Hello.')):016x}" == "da4a3422dae03c0c"


def test_a_row_has_the_same_fingerprint_in_whatever_format_it_is_written() -> None:
    openai = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    hermes = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
    glaive = {"system": "", "chat": "USER: Hi\n\n\nASSISTANT: Hello. <|endoftext|>"}
    rows = ((openai, DatasetFormat.OPENAI), (hermes, DatasetFormat.HERMES), (glaive, DatasetFormat.GLAIVE))
    assert {fingerprint(parse_row(row, dataset_format)) for row, dataset_format in rows} == {
        fingerprint(chat("Hello."))
    }


def test_the_order_of_tools_and_arguments_makes_no_other_row() -> None:
    one = chat("", ToolCall("add", {"a": 1, "b": 2}), tools=tuple(TOOLS))
    other = chat("", ToolCall("add", {"b": 2, "a": 1}), tools=tuple(reversed(TOOLS)))
    assert fingerprint(one) == fingerprint(other)


DIFFERENT = {
    "other words": chat("Hello!"),
    "a call of another tool": chat("Hello.", ToolCall("add", {})),
    "other arguments": chat("Hello.", ToolCall("divide", {"a": 1})),
    "arguments of another type": chat("Hello.", ToolCall("divide", {"a": "1"})),
}


def test_every_difference_in_a_turn_makes_another_row() -> None:
    assert len({fingerprint(one) for one in (chat("Hello."), *DIFFERENT.values())}) == 1 + len(DIFFERENT)


@pytest.mark.parametrize("share", [0.01, 0.02, 0.1, 0.5])
def test_the_share_of_the_rows_that_was_asked_for_is_held_out(share: float) -> None:
    held_out = sum(is_held_out(one, share) for one in MANY)
    deviation = (len(MANY) * share * (1 - share)) ** 0.5
    assert abs(held_out - len(MANY) * share) < 4 * deviation


@given(
    value=st.integers(0, 2**64 - 1),
    smaller=st.floats(0, 1, allow_nan=False),
    larger=st.floats(0, 1, allow_nan=False),
)
def test_a_row_that_is_held_out_stays_so_when_the_share_grows(value: int, smaller: float, larger: float) -> None:
    if smaller <= larger and is_held_out(value, smaller):
        assert is_held_out(value, larger)
    assert not is_held_out(value, 0)
    assert is_held_out(value, 1)


REPETITIONS = {
    "a row of weight 1 is trained on once": (1.0, {1: 1.0}),
    "a row of weight 3 is trained on three times": (3.0, {3: 1.0}),
    "of weight 0.25 a quarter of the rows is trained on": (0.25, {0: 0.75, 1: 0.25}),
    "of weight 2.5 half of the rows are trained on a third time": (2.5, {2: 0.5, 3: 0.5}),
}


@pytest.mark.parametrize("case", REPETITIONS)
def test_a_weight_says_how_often_rows_are_trained_on(case: str) -> None:
    weight, shares = REPETITIONS[case]
    counts = [num_repetitions(one, weight) for one in MANY]
    for times, share in shares.items():
        deviation = (len(MANY) * share * (1 - share)) ** 0.5
        assert abs(counts.count(times) - len(MANY) * share) <= 4 * deviation
    assert set(counts) == set(shares)


def test_what_is_left_out_by_a_weight_does_not_follow_what_is_held_out() -> None:
    held_out = [one for one in MANY if is_held_out(one, 0.5)]
    kept = sum(num_repetitions(one, 0.5) for one in held_out)
    assert abs(kept - len(held_out) / 2) < 4 * (len(held_out) / 4) ** 0.5
