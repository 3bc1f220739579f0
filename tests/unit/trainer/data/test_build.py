"""Rows into packed sequences: everything counted, nothing lost, bad rows named."""

import json
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from finetune_trainer.contract.dataset import Dataset, DatasetFormat, EvaluationDataset
from finetune_trainer.contract.spec import Overlong, Training
from finetune_trainer.contract.termination import Reason
from finetune_trainer.data import packed as packed_data
from finetune_trainer.data import parallel
from finetune_trainer.data.build import Source, build_data
from finetune_trainer.data.formats import parse_row
from finetune_trainer.data.heldout import HELDOUT_DIRECTORY, read_heldout
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
    max_held_out: int | None = 500,
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
    built = build([source(tmp_path, rows, max_bad_row_percent=1)], renderer, tmp_path / "out")
    assert built.datasets[0].rows_kept == 99


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


# --- rows that are held out -------------------------------------------------------------------------------------------

MANY = [chat(f"answer {number}") for number in range(200)]
WIDE = Training(max_sequence_length=256)


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


# --- weights ----------------------------------------------------------------------------------------------------------


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


# --- rows that must not be learnt from --------------------------------------------------------------------------------

ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}


def calling(name: str, arguments: Any, number: int = 0) -> dict[str, Any]:
    call = {"function": {"name": name, "arguments": arguments}}
    messages = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "tool_calls": [call]}]
    return {"messages": messages, "tools": [ADD]}


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


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_report_says_what_the_data_is_like(renderer: Renderer, tmp_path: Path) -> None:
    rows = [chat("x" * number) for number in (1, 2, 3, 4, 90, 1)]
    report = build([source(tmp_path, rows)], renderer, tmp_path / "out")
    lengths = sorted(len(renderer.render(parse_row(row, DatasetFormat.OPENAI))[0].tokens) for row in rows)
    found = report.preflight
    assert (found.conversations, found.duplicate_rows) == (6, 1)
    assert (found.tokens_p50, found.tokens_p95, found.tokens_max) == (lengths[2], lengths[5], lengths[5])
    assert found.tokens_mean == pytest.approx(sum(lengths) / 6, abs=0.05)
    assert found.truncated_share == pytest.approx(1 / 6, abs=1e-4)
    assert found.packing_efficiency == pytest.approx(report.tokens / (64 * report.sequences), abs=1e-4)
    assert sum(one.conversations for one in report.lengths) == 6
    assert report.lengths[-1].first <= lengths[5] <= report.lengths[-1].last
    assert found.chat_template.startswith("tools in the Hermes notation, sha256:")


def test_the_report_counts_functions_and_shows_a_call_with_what_is_trained(renderer: Renderer, tmp_path: Path) -> None:
    rows = [chat("x"), calling("add", {"a": 1}, 1), calling("add", {"a": 2}, 2)]
    report = build([source(tmp_path, rows)], renderer, tmp_path / "out", Training(max_sequence_length=2048))
    assert (report.preflight.tools, report.preflight.tool_calls) == (1, 2)
    assert [(one.name, one.conversations, one.calls) for one in report.functions] == [("add", 2, 2)]
    assert report.example_place == "rows.jsonl, row 2"
    trained = [segment.text for segment in report.example if segment.trained]
    assert trained == ['<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>']
    read_by_the_model = "".join(segment.text for segment in report.example)
    assert read_by_the_model.startswith("<|im_start|>system\nYou are a function calling AI model.")


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
