"""Rows that must not be learnt from: left out, counted and named, or too many of them."""

import logging
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.spec import Training
from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.render import Renderer
from finetune_trainer.errors import TrainerError
from tests.unit.trainer.data.building import ADD, build, calling, chat, source


def test_a_few_malformed_rows_are_left_out_and_named(
    renderer: Renderer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rows = [chat("good"), '{"messages": [', {"messages": [{"role": "robot"}]}, chat("fine")]
    report = build([source(tmp_path, rows, max_bad_row_percent=50)], renderer, tmp_path / "out")
    assert report.datasets[0].dropped == {"malformed": 2}
    assert report.datasets[0].rows_kept == 2
    assert "rows.jsonl, row 2: is not JSON" in caplog.text
    assert "rows.jsonl, row 3: messages[1].role: 'robot' is none of" in caplog.text
    [note] = report.notes[1:]
    assert note.startswith("2 bad rows were left out: rows.jsonl, row 2: is not JSON")


def test_more_malformed_rows_than_allowed_fail_with_the_first_of_them(renderer: Renderer, tmp_path: Path) -> None:
    rows = [chat("good")] * 98 + [{"messages": []}, {"chat": "USER: Hi"}]
    with pytest.raises(TrainerError) as error:
        build([source(tmp_path, rows, max_bad_row_percent=1)], renderer, tmp_path / "out")
    assert error.value.reason is Reason.DATA_INVALID
    assert "rows.jsonl: 2 of 100 rows are bad (2 malformed), more than the 1 percent" in error.value.message
    assert "rows.jsonl, row 99: has no turn of the assistant" in error.value.message
    assert "rows.jsonl, row 100: is not in format openai" in error.value.message
    assert "set format: glaive" in error.value.message


def test_exactly_as_many_malformed_rows_as_allowed_pass(renderer: Renderer, tmp_path: Path) -> None:
    rows = [chat("good")] * 99 + [{"messages": []}]
    built = build([source(tmp_path, rows, max_bad_row_percent=1)], renderer, tmp_path / "out")
    assert built.datasets[0].rows_kept == 99


def test_only_the_first_malformed_rows_are_named_in_the_log(
    renderer: Renderer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [chat("good"), *[{"messages": []}] * 30]
    build([source(tmp_path, rows, max_bad_row_percent=99)], renderer, tmp_path / "out")
    assert caplog.text.count("has no turn of the assistant") == 20
    assert caplog.text.count("no longer named") == 1


BAD_ROWS: dict[str, tuple[Any, str, str]] = {
    "a call of a function that is not among the tools": (
        calling("ad", {}), "call of an unknown function", "turn 2: calls ad, which is not among",
    ),
    "arguments that break the schema": (
        calling("add", {"a": "1"}), "arguments that break the schema", "turn 2: arguments.a of add: '1' is not of type",
    ),
    "an empty turn of the assistant": (
        chat(""), "empty assistant turn", "turn 2: the assistant says nothing and calls nothing: fill",
    ),
    "two turns of the user behind each other": (
        {"messages": [{"role": "user", "content": "a"}, *chat("b")["messages"]]}, "unbalanced turns",
        "turn 2: the user speaks twice in a row: join the two turns",
    ),
    "a call that has no answer": (
        {"messages": [*calling("add", {})["messages"], *chat("b")["messages"]], "tools": [ADD]}, "unbalanced turns",
        "turn 3: the user speaks, but the assistant's call has no answer: add the tool's turn",
    ),
    "a row of 10 MB": (
        chat("Long.", question="x" * (10 << 20)), "too large", "has 10,485,765 characters, of which 10,485,760 in turn",
    ),
    "a token that marks turns": (
        chat("<|im_end|>"), "refused by the chat template", "turn 2: contains '<|im_end|>'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_left_out_counted_by_what_is_wrong_and_named_with_its_mend(
    case: str, renderer: Renderer, tmp_path: Path
) -> None:
    row, reason, words = BAD_ROWS[case]
    rows = [chat("good"), row, chat("fine")]
    report = build([source(tmp_path, rows, max_bad_row_percent=50)], renderer, tmp_path / "out")
    assert report.datasets[0].dropped == {reason: 1}
    assert report.datasets[0].rows_kept == 2
    assert report.bad_rows[0].startswith(f"rows.jsonl, row 2: {words}")


def test_calls_that_do_not_fit_their_tools_are_left_out_as_long_as_most_rows_are_good(
    renderer: Renderer, tmp_path: Path
) -> None:
    rows = [calling("add", {"a": 1}, number) for number in range(5)] + [
        calling("ad", {}, number) for number in range(5)
    ]
    report = build([source(tmp_path, rows)], renderer, tmp_path / "out", Training(max_sequence_length=2048))
    assert report.datasets[0].dropped == {"call of an unknown function": 5}
    with pytest.raises(TrainerError, match=r"in 5 of 9 rows calls do not fit the tools: mend them, or raise maxBad"):
        build([source(tmp_path, rows[1:])], renderer, tmp_path / "out")
