"""Rows into packed sequences: everything counted, nothing lost, bad rows named."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from finetune_trainer.contract.spec import Dataset, Overlong, Training
from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.build import Source, build_data
from finetune_trainer.data.packed import PackedSequences
from finetune_trainer.data.render import Renderer
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.rows import RowWork
from finetune_trainer.data.template import load_tokenizer
from finetune_trainer.errors import TrainerError
from tests import chat_models

TRAINING = Training(max_sequence_length=64)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    directory = tmp_path_factory.mktemp("tokenizer")
    chat_models.write_tokenizer(directory)
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def renderer(tokenizer: PreTrainedTokenizerFast) -> Renderer:
    return Renderer(tokenizer)


def chat(answer: str, question: str = "Hi") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def source(directory: Path, rows: list[Any], name: str = "rows.jsonl", **fields: Any) -> Source:
    path = directory / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Source(Dataset(path=name, **({"format": "openai"} | fields)), name, None, ((name, path),))


def texts(tokenizer: Any, packed: PackedSequences) -> list[str]:
    """The documents of all sequences, as the model is shown them, in alphabetical order."""
    documents = []
    for index in range(len(packed)):
        start = 0
        for length in packed.sequence(index).document_lengths.tolist():
            tokens = packed.sequence(index).tokens[start : start + length]
            documents.append(tokenizer.decode(tokens))
            start += length
    return sorted(documents)


def build(
    sources: list[Source],
    renderer: Renderer,
    directory: Path,
    training: Training = TRAINING,
    holdout_share: float = 0,
    max_held_out: int = 500,
    num_processes: int = 1,
) -> DataReport:
    work = RowWork(renderer, training, holdout_share, chat_models.VOCABULARY_SIZE)
    return build_data(sources, work, max_held_out, directory, num_processes)


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
    build([source(tmp_path, rows, max_bad_row_percent=1)], renderer, tmp_path / "out")


def test_only_the_first_malformed_rows_are_named_in_the_log(
    renderer: Renderer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [chat("good"), *[{"messages": []}] * 30]
    build([source(tmp_path, rows, max_bad_row_percent=99)], renderer, tmp_path / "out")
    assert caplog.text.count("has no turn of the assistant") == 20
    assert caplog.text.count("no longer named") == 1


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
