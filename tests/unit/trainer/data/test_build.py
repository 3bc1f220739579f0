"""Rows into packed sequences: everything counted, nothing lost."""

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.spec import Overlong, Training
from finetune_trainer.contract.termination import Reason
from finetune_trainer.data import packed as packed_data
from finetune_trainer.data import parallel
from finetune_trainer.data.build import build_data
from finetune_trainer.data.packed import PackedSequences
from finetune_trainer.data.render import Renderer
from finetune_trainer.data.rows import RowWork
from finetune_trainer.errors import TrainerError
from tests.unit.trainer.data.building import MANY, TRAINING, WIDE, build, chat, source, texts


def test_every_conversation_is_in_the_packed_data_whole(tokenizer: Any, renderer: Renderer, tmp_path: Path) -> None:
    answers = [f"answer {number} " + "x" * number for number in range(20)]
    report = build([source(tmp_path, [chat(answer) for answer in answers])], renderer, tmp_path / "out")
    packed = PackedSequences.open(tmp_path / "out")
    assert texts(tokenizer, packed) == sorted(
        f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n" for answer in answers
    )
    assert len(packed) < 20
    assert report.sequences == len(packed)
    assert report.tokens == sum(len(packed.sequence(index).tokens) for index in range(len(packed)))
    assert report.trained_tokens == int(packed.num_targets.sum())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "heldout.jsonl",
        "packed.arrow",
        "report.json",
    ]


def test_without_packing_each_conversation_is_a_sequence(renderer: Renderer, tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"packing": False})
    report = build([source(tmp_path, [chat("a"), chat("b"), chat("c")])], renderer, tmp_path / "out", training)
    assert report.sequences == 3


def test_equal_input_gives_equal_files(renderer: Renderer, tmp_path: Path) -> None:
    rows = [chat("x" * number) for number in range(1, 30)]
    for name in ("one", "two"):
        build([source(tmp_path, rows)], renderer, tmp_path / name)
    assert (tmp_path / "one/packed.arrow").read_bytes() == (tmp_path / "two/packed.arrow").read_bytes()


LONG = [chat("y" * 200), chat("short"), chat("z", question="q" * 200)]


def test_overlong_conversations_are_cut_and_counted(renderer: Renderer, tmp_path: Path) -> None:
    report = build([source(tmp_path, LONG)], renderer, tmp_path / "out")
    assert report.truncated_conversations == 1
    [dataset] = report.datasets
    assert (dataset.rows_read, dataset.rows_kept) == (3, 2)
    assert dataset.dropped == {"assistant only beyond maxSequenceLength": 1}
    packed = PackedSequences.open(tmp_path / "out")
    assert max(len(packed.sequence(index).tokens) for index in range(len(packed))) == 64


def test_overlong_conversations_are_dropped_and_counted_when_asked_for(renderer: Renderer, tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"overlong": Overlong.DROP})
    report = build([source(tmp_path, LONG)], renderer, tmp_path / "out", training)
    assert report.truncated_conversations == 0
    assert report.datasets[0].dropped == {"longer than maxSequenceLength": 2}
    assert report.datasets[0].rows_kept == 1


def test_only_the_first_rows_are_read_when_asked_for(renderer: Renderer, tmp_path: Path) -> None:
    rows = [chat("one"), chat("two"), chat("three")]
    report = build([source(tmp_path, rows, max_samples=2)], renderer, tmp_path / "out")
    assert report.datasets[0].rows_read == 2


def test_data_sets_are_mixed_and_counted_apart(renderer: Renderer, tmp_path: Path) -> None:
    glaive = {"system": "", "chat": "USER: Hi\n\n\nASSISTANT: Hello. <|endoftext|>"}
    sources = [
        source(tmp_path, [chat("one"), chat("two")]),
        source(tmp_path, [glaive], name="glaive.jsonl", format="glaive"),
    ]
    report = build(sources, renderer, tmp_path / "out", Training(max_sequence_length=256))
    assert [(one.name, one.rows_kept) for one in report.datasets] == [("rows.jsonl", 2), ("glaive.jsonl", 1)]
    assert report.sequences == 1


def test_a_data_set_without_rows_fails(renderer: Renderer, tmp_path: Path) -> None:
    with pytest.raises(TrainerError) as error:
        build([source(tmp_path, [])], renderer, tmp_path / "out")
    assert error.value.reason is Reason.DATA_INVALID
    assert error.value.message == "rows.jsonl: has no rows"


def test_a_data_set_of_which_nothing_is_left_fails_with_the_counts(renderer: Renderer, tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"overlong": Overlong.DROP})
    with pytest.raises(TrainerError, match="none of 1 rows is left to train on: 1 longer than maxSequenceLength"):
        build([source(tmp_path, [chat("y" * 200)])], renderer, tmp_path / "out", training)


def test_a_tokenizer_of_another_model_is_refused(renderer: Renderer, tmp_path: Path) -> None:
    with pytest.raises(TrainerError) as error:
        build_data([source(tmp_path, [chat("Hello")])], RowWork(renderer, TRAINING, 0, 100), 0, tmp_path / "out", 1)
    assert error.value.reason is Reason.MODEL_UNSUPPORTED
    assert "the model has 100" in error.value.message


def test_what_the_template_cannot_do_is_noted(renderer: Renderer, tmp_path: Path) -> None:
    report = build([source(tmp_path, [chat("a")])], renderer, tmp_path / "out")
    assert report.notes == ("the model's chat template takes no tools: they are written in the Hermes notation",)


def test_a_row_of_weight_two_is_in_the_packed_data_twice_and_counted_once(
    tokenizer: Any, renderer: Renderer, tmp_path: Path
) -> None:
    report = build([source(tmp_path, [chat("a"), chat("b")], weight=2)], renderer, tmp_path / "out")
    assert len(texts(tokenizer, PackedSequences.open(tmp_path / "out"))) == 4
    assert (report.datasets[0].rows_kept, report.preflight.conversations) == (2, 2)


def test_of_weight_one_half_about_half_of_the_rows_are_used_and_the_others_counted(
    renderer: Renderer, tmp_path: Path
) -> None:
    sources = [source(tmp_path, MANY, weight=0.5), source(tmp_path, [chat("whole")], name="whole.jsonl")]
    report = build(sources, renderer, tmp_path / "out", WIDE)
    half, whole = report.datasets
    assert 70 < half.rows_kept < 130
    assert half.dropped == {"not drawn, as weight is below 1": 200 - half.rows_kept}
    assert whole.rows_kept == 1


def test_the_same_report_is_written_by_one_process_and_by_two(renderer: Renderer, tmp_path: Path) -> None:
    sources = [source(tmp_path, [chat(f"{number} " + "x" * 100) for number in range(100)])]
    alone = build(sources, renderer, tmp_path / "one", WIDE, holdout_share=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "PARALLEL_FROM_BYTES", 0)
        assert build(sources, renderer, tmp_path / "two", WIDE, holdout_share=0.1, num_processes=2) == alone
    for name in ("packed.arrow", "heldout.jsonl", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_memory_grows_by_far_less_than_the_rows(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_data, "TOKENS_PER_RECORD_BATCH", 2000)
    peaks = []
    for number in (60, 700):
        rows = [chat(f"{row} " + "x" * 200, question="y" * 200) for row in range(number)]
        one = source(tmp_path, rows, name=f"{number}.jsonl")
        tracemalloc.start()
        build([one], renderer, tmp_path / str(number), Training(max_sequence_length=1024))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A row takes 470 bytes in the file, and about 1,500 as tokens and marks of training.
    assert peaks[1] - peaks[0] < 640 * 400
