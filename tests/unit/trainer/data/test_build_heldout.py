"""Rows that are held out of the training to be scored."""

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.dataset import DatasetFormat, EvaluationDataset
from finetune_trainer.data.build import Source
from finetune_trainer.data.heldout import HELDOUT_DIRECTORY, read_heldout
from finetune_trainer.data.packed import PackedSequences
from finetune_trainer.data.render import Renderer
from finetune_trainer.errors import TrainerError
from tests.unit.trainer.data.building import MANY, WIDE, build, chat, source, texts


def answers(directory: Path) -> set[str]:
    return {row.conversation.messages[-1].content for row in read_heldout(directory)}


def trained_answers(tokenizer: Any, directory: Path) -> set[str]:
    found = texts(tokenizer, PackedSequences.open(directory))
    return {text.split("assistant\n")[1].removesuffix("<|im_end|>\n") for text in found}


def test_a_row_is_trained_on_or_held_out_and_never_both(tokenizer: Any, renderer: Renderer, tmp_path: Path) -> None:
    report = build([source(tmp_path, MANY)], renderer, tmp_path / "out", WIDE, holdout_share=0.1)
    held_out, trained = answers(tmp_path / "out"), trained_answers(tokenizer, tmp_path / "out")
    assert held_out | trained == {f"answer {number}" for number in range(200)}
    assert not held_out & trained
    assert 8 < len(held_out) < 35
    assert report.datasets[0].rows_held_out == report.preflight.held_out_rows == len(held_out)
    assert report.datasets[0].rows_kept == report.preflight.conversations == len(trained)


def test_the_same_rows_are_held_out_whatever_their_order_and_whatever_else_there_is(
    renderer: Renderer, tmp_path: Path
) -> None:
    build([source(tmp_path, MANY)], renderer, tmp_path / "one", WIDE, holdout_share=0.1)
    others = [chat(f"other {number}") for number in range(50)]
    hermes = [
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": f"answer {number}"}]}
        for number in reversed(range(200))
    ]
    sources = [source(tmp_path, others, name="others.jsonl"), source(tmp_path, hermes, "h.jsonl", format="hermes")]
    build(sources, renderer, tmp_path / "two", WIDE, holdout_share=0.1)
    assert {answer for answer in answers(tmp_path / "two") if answer.startswith("answer")} == answers(tmp_path / "one")


def test_duplicates_of_a_held_out_row_are_held_out_too_and_scored_once(
    tokenizer: Any, renderer: Renderer, tmp_path: Path
) -> None:
    twice = [source(tmp_path, MANY), source(tmp_path, MANY, name="again.jsonl")]
    report = build(twice, renderer, tmp_path / "out", WIDE, holdout_share=0.1)
    held_out = answers(tmp_path / "out")
    assert not held_out & trained_answers(tokenizer, tmp_path / "out")
    assert len(read_heldout(tmp_path / "out")) == len(held_out)
    assert [dataset.rows_held_out for dataset in report.datasets] == [len(held_out)] * 2
    assert report.preflight.duplicate_rows == 200


def test_of_more_held_out_rows_than_are_scored_the_same_ones_are_kept_and_none_is_trained_on(
    tokenizer: Any, renderer: Renderer, tmp_path: Path
) -> None:
    build([source(tmp_path, MANY)], renderer, tmp_path / "all", WIDE, holdout_share=0.2)
    everyone = answers(tmp_path / "all")
    for name, rows in (("few", MANY), ("reversed", MANY[::-1])):
        report = build([source(tmp_path, rows)], renderer, tmp_path / name, WIDE, 0.2, max_held_out=5)
        assert report.preflight.held_out_rows == 5
        assert any(
            note.startswith(f"{len(everyone) - 5} held-out rows beyond evaluation.holdout.maxRows")
            for note in report.notes
        )
        assert not everyone & trained_answers(tokenizer, tmp_path / name)
    assert answers(tmp_path / "few") == answers(tmp_path / "reversed") < everyone


def test_held_out_rows_are_packed_too_for_the_loss_on_them(tokenizer: Any, renderer: Renderer, tmp_path: Path) -> None:
    build([source(tmp_path, MANY)], renderer, tmp_path / "out", WIDE, holdout_share=0.1)
    assert trained_answers(tokenizer, tmp_path / "out" / HELDOUT_DIRECTORY) == answers(tmp_path / "out")


def test_a_share_into_which_no_row_falls_is_noted(renderer: Renderer, tmp_path: Path) -> None:
    report = build([source(tmp_path, [chat("Hello.")])], renderer, tmp_path / "out", holdout_share=1e-9)
    assert read_heldout(tmp_path / "out") == []
    assert not (tmp_path / "out" / HELDOUT_DIRECTORY).exists()
    assert report.notes[-1].startswith("no row fell into evaluation.holdout.share")


def scored_source(directory: Path, rows: list[Any], name: str = "scored.jsonl") -> Source:
    written = source(directory, rows, name)
    return Source(EvaluationDataset(path=name, format=DatasetFormat.OPENAI), name, None, written.files)


def test_every_row_of_a_data_set_to_score_on_is_held_out_and_none_of_the_others(
    tokenizer: Any, renderer: Renderer, tmp_path: Path
) -> None:
    scored = scored_source(tmp_path, [chat(f"scored {number}") for number in range(30)])
    report = build([scored, source(tmp_path, MANY)], renderer, tmp_path / "out", WIDE, max_held_out=None)
    assert answers(tmp_path / "out") == {f"scored {number}" for number in range(30)}
    assert trained_answers(tokenizer, tmp_path / "out") == {f"answer {number}" for number in range(200)}
    assert [(dataset.name, dataset.rows_kept, dataset.rows_held_out) for dataset in report.datasets] == [
        ("rows.jsonl", 200, 0),
        ("scored.jsonl", 0, 30),
    ]


def test_rows_that_are_scored_are_left_out_of_the_training(tokenizer: Any, renderer: Renderer, tmp_path: Path) -> None:
    scored = scored_source(tmp_path, [*MANY[:7], chat("scored")])
    report = build([scored, source(tmp_path, MANY)], renderer, tmp_path / "out", WIDE, max_held_out=None)
    assert trained_answers(tokenizer, tmp_path / "out") == {f"answer {number}" for number in range(7, 200)}
    assert report.datasets[0].dropped == {"also in evaluation.datasets": 7}


def test_data_of_which_every_row_is_held_out_is_refused(renderer: Renderer, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"every row is held out.*lower evaluation\.holdout\.share"):
        build([source(tmp_path, MANY)], renderer, tmp_path / "out", holdout_share=1.0)
