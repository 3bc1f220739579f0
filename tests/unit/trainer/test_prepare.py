"""The prepare stage on a laptop's directory: what it lays ready, what it caches, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.architecture import read_shape
from finetune_trainer.contract import environment as names
from finetune_trainer.contract.job import TrainerJob, parse_job
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import PreparedReport, Reason
from finetune_trainer.data.heldout import HELDOUT_DIRECTORY, read_heldout
from finetune_trainer.data.packed import PackedSequences
from finetune_trainer.errors import TrainerError
from finetune_trainer.prepare import prepare
from tests import chat_models


def make_shared(root: Path, num_rows: int = 20) -> Path:
    """A shared filesystem with a small model and a data set."""
    chat_models.write_chat_model(root / "models/tiny", max_position_embeddings=1024)
    (root / "data").mkdir()
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {number}?"},
                {"role": "assistant", "content": "x" * number},
            ]
        }
        for number in range(1, num_rows + 1)
    ]
    (root / "data/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = [{"role": "user", "content": "What is scored?"}, {"role": "assistant", "content": "This."}]
    (root / "data/scored.jsonl").write_text(json.dumps({"messages": scored}) + "\n")
    return root


def job(name: str = "tiny", **groups: Any) -> TrainerJob:
    spec: dict[str, Any] = {
        "model": {"path": "models/tiny"},
        "datasets": [{"path": "data/rows.jsonl", "format": "openai"}],
        "lora": {"rank": 8, "alpha": 16},
        "training": {"maxSequenceLength": 256, "batchSize": 1, "gradientAccumulation": 2},
        "compute": {"device": "cpu"},
    }
    for group, fields in groups.items():
        spec[group] = spec.get(group, {}) | fields if isinstance(fields, dict) else fields
    return parse_job(
        {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}
    )


def run(shared: Path, name: str = "tiny", environment: dict[str, str] | None = None, **groups: Any) -> PreparedReport:
    one = job(name, **groups)
    return prepare(one, JobPaths.of(one, shared, None), environment or {})


def test_prepare_lays_ready_what_train_reads(tmp_path: Path) -> None:
    shared = make_shared(tmp_path)
    report = run(shared, training={"epochs": 2})
    assert (shared / report.model_path / "config.json").is_file()
    data = PackedSequences.open(shared / report.data_path)
    assert len(data) == report.sequences
    assert int(data.num_targets.sum()) == report.trained_tokens
    assert report.total_steps == 2 * -(-report.sequences // 2)
    shape = read_shape(shared / report.model_path)
    assert (report.parameters, report.model_family) == (shape.num_parameters, "llama")
    assert (report.precision, report.sharding, report.world_size) == ("fp32", "replicate", 1)
    [dataset] = report.datasets
    assert (dataset.name, dataset.revision, dataset.rows_read) == ("data/rows.jsonl", None, 20)
    assert (dataset.rows_kept, dataset.rows_held_out, dataset.dropped) == (19, 1, {})
    assert len(read_heldout(shared / report.data_path)) == 1
    assert len(PackedSequences.open(shared / report.data_path / HELDOUT_DIRECTORY)) == 1
    written = (shared / "jobs/default/tiny/local/prepared.json").read_text()
    assert PreparedReport.model_validate_json(written) == report


def test_a_second_job_with_equal_settings_uses_the_same_data(tmp_path: Path) -> None:
    shared = make_shared(tmp_path)
    first = run(shared, "one")
    packed = shared / first.data_path / "packed.arrow"
    written_at = packed.stat().st_mtime_ns
    second = run(shared, "two", training={"seed": 5, "epochs": 7}, lora={"rank": 4})
    assert second.data_path == first.data_path
    assert second.datasets == first.datasets
    assert packed.stat().st_mtime_ns == written_at


CHANGES: dict[str, dict[str, Any]] = {
    "the length of sequences": {"training": {"maxSequenceLength": 128}},
    "what happens to long conversations": {"training": {"overlong": "drop"}},
    "packing": {"training": {"packing": False}},
    "the number of rows": {"datasets": [{"path": "data/rows.jsonl", "format": "openai", "maxSamples": 5}]},
    "the weight of a data set": {"datasets": [{"path": "data/rows.jsonl", "format": "openai", "weight": 2}]},
    "the share of the rows that is held out": {"evaluation": {"holdout": {"share": 0.5}}},
    "the number of rows that are held out": {"evaluation": {"holdout": {"maxRows": 1}}},
    "that nothing is held out": {"evaluation": {"enabled": False}},
    "the rows to score on": {"evaluation": {"datasets": [{"path": "data/scored.jsonl", "format": "openai"}]}},
    "the allowed share of bad rows": {
        "datasets": [{"path": "data/rows.jsonl", "format": "openai", "maxBadRowPercent": 0}]
    },
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_setting_that_decides_the_data_gives_data_of_its_own(case: str, tmp_path: Path) -> None:
    shared = make_shared(tmp_path)
    assert run(shared).data_path != run(shared, **CHANGES[case]).data_path


def test_data_sets_to_score_on_take_the_place_of_held_out_rows(tmp_path: Path) -> None:
    shared = make_shared(tmp_path)
    report = run(shared, **CHANGES["the rows to score on"])
    trained, scored = report.datasets
    assert (trained.name, trained.rows_kept, trained.rows_held_out) == ("data/rows.jsonl", 20, 0)
    assert (scored.name, scored.rows_kept, scored.rows_held_out) == ("data/scored.jsonl", 0, 1)
    assert [row.place for row in read_heldout(shared / report.data_path)] == ["data/scored.jsonl, row 1"]


def test_data_sets_to_score_on_are_not_read_where_nothing_is_scored(tmp_path: Path) -> None:
    datasets = [{"path": "data/missing.jsonl", "format": "openai"}]
    report = run(make_shared(tmp_path), evaluation={"enabled": False, "datasets": datasets})
    assert [dataset.name for dataset in report.datasets] == ["data/rows.jsonl"]


def test_data_is_prepared_anew_when_a_file_or_the_tokenizer_changed(tmp_path: Path) -> None:
    shared = make_shared(tmp_path)
    paths = [run(shared).data_path]
    with (shared / "data/rows.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}\n')
    paths.append(run(shared).data_path)
    chat_models.write_tokenizer(shared / "models/tiny", chat_models.CHATML_WITH_TOOLS)
    paths.append(run(shared).data_path)
    assert len(set(paths)) == 3


def test_damaged_data_is_prepared_anew(tmp_path: Path) -> None:
    shared = make_shared(tmp_path)
    report = run(shared)
    packed = shared / report.data_path / "packed.arrow"
    content = packed.read_bytes()
    packed.write_bytes(content[:100])
    assert run(shared) == report
    assert packed.read_bytes() == content


def refusal(shared: Path, environment: dict[str, str] | None = None, **groups: Any) -> TrainerError:
    with pytest.raises(TrainerError) as error:
        run(shared, environment=environment, **groups)
    assert not (shared / "jobs").exists()
    return error.value


def test_sequences_longer_than_the_model_reads_are_refused_with_the_longest_that_work(tmp_path: Path) -> None:
    error = refusal(make_shared(tmp_path), training={"maxSequenceLength": 2048})
    assert error.reason is Reason.INVALID_SPEC
    assert error.message == (
        "spec.training.maxSequenceLength is 2048, but the model reads 1024 tokens at most: set maxSequenceLength: 1024 "
        "or less"
    )


def test_failed_preparation_of_data_leaves_nothing_behind(tmp_path: Path) -> None:
    shared = make_shared(tmp_path)
    (shared / "data/rows.jsonl").write_text('{"messages": []}\n')
    error = refusal(shared)
    assert error.reason is Reason.DATA_INVALID
    assert "data/rows.jsonl, row 1" in error.message
    assert [path.name for path in (shared / "datasets").iterdir()] == [".locks"]


REFUSED: dict[str, tuple[dict[str, Any], Reason, str]] = {
    "a model that is not there": ({"model": {"path": "models/none"}}, Reason.MODEL_UNAVAILABLE, "models/none"),
    "a model that is a file": ({"model": {"path": "data/rows.jsonl"}}, Reason.MODEL_UNAVAILABLE, "no directory"),
    "a data set that is not there": (
        {"datasets": [{"path": "data/none.jsonl", "format": "openai"}]}, Reason.DATA_UNAVAILABLE, "data/none.jsonl",
    ),
    "a data set in another format": (
        {"datasets": [{"path": "data/rows.jsonl", "format": "hermes"}]}, Reason.DATA_INVALID, "set format: openai",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_prepared_is_refused_with_its_name(case: str, tmp_path: Path) -> None:
    groups, reason, words = REFUSED[case]
    error = refusal(make_shared(tmp_path), **groups)
    assert error.reason is reason
    assert words in error.message


def test_weights_of_another_model_are_refused_before_the_data_is_read(tmp_path: Path) -> None:
    shared = make_shared(tmp_path)
    config = json.loads((shared / "models/tiny/config.json").read_text())
    (shared / "models/tiny/config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert refusal(shared).reason is Reason.MODEL_UNSUPPORTED
    assert not (shared / "datasets").exists()


def test_a_job_that_does_not_fit_the_gpus_is_refused(tmp_path: Path) -> None:
    shared = make_shared(tmp_path)
    on_gpu = {"device": "gpu", "gpusPerNode": 1}
    error = refusal(shared, {names.GPU_MEMORY_BYTES: "100000000"}, compute=on_gpu)
    assert error.reason is Reason.WILL_NOT_FIT
    assert run(shared, environment={names.GPU_MEMORY_BYTES: str(80 << 30)}, compute=on_gpu).precision == "bf16"


def test_a_gpu_memory_that_is_no_number_is_refused(tmp_path: Path) -> None:
    error = refusal(make_shared(tmp_path), {names.GPU_MEMORY_BYTES: "80Gi"})
    assert error.message == "FINETUNE_GPU_MEMORY_BYTES: '80Gi' is no number of bytes"
