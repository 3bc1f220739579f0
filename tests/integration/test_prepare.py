"""`python -m finetune_trainer prepare` as a pod runs it: a process of its own, its last word, its exit status."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.hub.server import HubServer, LineCut, serving
from dev.hub.store import Store
from finetune_trainer.contract.termination import Reason, TerminationMessage, read_termination
from tests import chat_models

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "manifests/samples/data"
MODEL, DATASET = "team/model", "team/calls"
CARD = "---\nconfigs:\n- config_name: calls\n  data_files: calls.jsonl\n---\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    model = tmp_path_factory.mktemp("model")
    chat_models.write_chat_model(model, chat_models.CHATML_WITH_TOOLS)
    store.publish("models", MODEL, model)
    rows = tmp_path_factory.mktemp("rows")
    shutil.copy(SAMPLES / "function-calling-hermes.jsonl", rows / "calls.jsonl")
    (rows / "README.md").write_text(CARD)
    store.publish("datasets", DATASET, rows)
    return store


@pytest.fixture
def server(store: Store) -> Iterator[HubServer]:
    with serving(HubServer(store, "127.0.0.1", 0)) as server:
        yield server


def write_job(directory: Path, **groups: Any) -> Path:
    spec: dict[str, Any] = {
        "model": {"huggingFace": {"repository": MODEL}},
        "datasets": [{"huggingFace": {"repository": DATASET, "subset": "calls"}, "format": "hermes"}],
        "lora": {"rank": 8, "alpha": 16},
        "training": {"maxSequenceLength": 2048, "gradientAccumulation": 1},
        "compute": {"device": "cpu"},
        "storage": {"shared": {"size": "1Gi"}},
    } | groups
    path = directory / "job.yaml"
    path.write_text(
        yaml.safe_dump(
            {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "calls"}, "spec": spec}
        )
    )
    return path


def start(directory: Path, job: Path, endpoint: str, shared: Path | None = None) -> subprocess.Popen[str]:
    """Start prepare with the environment of a pod: no home, and nothing but what the operator sets."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "trainer"),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(directory / "hf"),
    }
    arguments = ["prepare", str(job), "--shared", str(shared or directory / "shared")]
    return subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer", *arguments, "--termination-log", str(directory / "termination")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_word(directory: Path) -> TerminationMessage:
    message = read_termination((directory / "termination").read_text())
    assert message is not None
    return message


def test_a_job_on_the_hub_is_prepared_and_a_second_one_downloads_nothing(server: HubServer, tmp_path: Path) -> None:
    job = write_job(tmp_path)
    outputs = []
    for _ in range(2):
        process = start(tmp_path, job, server.endpoint)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        outputs.append(output)
    assert "downloading" in outputs[0]
    assert "downloading" not in outputs[1]
    assert "packed data is in the cache" in outputs[1]
    message = last_word(tmp_path)
    assert message.reason is Reason.SUCCEEDED
    assert message.prepared is not None
    num_rows = len((SAMPLES / "function-calling-hermes.jsonl").read_text().splitlines())
    [dataset] = message.prepared.datasets
    assert (dataset.name, dataset.rows_read, dataset.dropped) == (DATASET, num_rows, {})
    assert dataset.rows_held_out > 0
    assert dataset.rows_kept + dataset.rows_held_out == num_rows
    assert message.message.startswith(f"prepared {dataset.rows_kept} of {num_rows} rows")
    assert message.prepared.model.startswith(f"{MODEL}@")


def test_prepare_does_not_need_torch(server: HubServer, tmp_path: Path) -> None:
    imported = "import sys, finetune_trainer.__main__, finetune_trainer.prepare; print('torch' in sys.modules)"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "trainer")}
    result = subprocess.run(
        [sys.executable, "-c", imported], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "False"


def test_a_failure_is_one_line_an_exit_status_and_a_last_word(server: HubServer, tmp_path: Path) -> None:
    process = start(tmp_path, write_job(tmp_path, model={"huggingFace": {"repository": "team/none"}}), server.endpoint)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    message = last_word(tmp_path)
    assert message.reason is Reason.MODEL_UNAVAILABLE
    assert errors == f"ModelUnavailable: {message.message}\n"
    assert message.message.startswith("team/none: there is no such model")


def test_a_job_file_with_wrong_fields_names_all_of_them(tmp_path: Path) -> None:
    job = write_job(tmp_path, training={"epochs": 0, "learningRate": 1})
    process = start(tmp_path, job, "http://127.0.0.1:9")
    process.communicate(timeout=60)
    message = last_word(tmp_path)
    assert (process.returncode, message.reason) == (1, Reason.INVALID_SPEC)
    assert "spec.training.epochs" in message.message
    assert "spec.training.learningRate" in message.message


def test_a_prepare_that_is_stopped_says_so_and_does_not_wait_for_its_downloads(store: Store, tmp_path: Path) -> None:
    # The line breaks again and again, so that the download hangs in its retries.
    away = HubServer(store, "127.0.0.1", 0, line_cut=LineCut(offset_bytes=20_000, times=1000))
    with serving(away):
        process = start(tmp_path, write_job(tmp_path), away.endpoint)
        models = tmp_path / "shared/models"
        deadline = time.monotonic() + 30
        while not list(models.glob(".*.partial/config.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        stopped_at = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert time.monotonic() - stopped_at < 3
    message = last_word(tmp_path)
    assert (process.returncode, message.reason) == (143, Reason.TERMINATED)
    assert "SIGTERM" in message.message
    # What has arrived is kept, so that a job that was suspended goes on from there.
    assert list(models.glob(".*.partial/tokenizer.json"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of 512 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(mount)], check=True)
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def files_under(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_model_that_is_larger_than_the_disk_is_not_begun(server: HubServer, small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "ballast").write_bytes(b"\0" * (440 << 10))
    process = start(tmp_path, write_job(tmp_path), server.endpoint, shared=small_disk)
    process.communicate(timeout=60)
    message = last_word(tmp_path)
    assert (process.returncode, message.reason) == (1, Reason.STORAGE_FULL)
    assert "have to be downloaded, but the shared filesystem has" in message.message
    assert files_under(small_disk) == ["ballast"]


def test_a_disk_that_fills_up_while_data_is_packed_leaves_nothing_half_written(
    small_disk: Path, tmp_path: Path
) -> None:
    chat_models.write_chat_model(small_disk / "model", max_position_embeddings=8192)
    rows = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "abcdefgh " * 200}]}
        for _ in range(60)
    ]
    (small_disk / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    before = files_under(small_disk)
    datasets = [{"path": "rows.jsonl", "format": "openai"}]
    job = write_job(tmp_path, model={"path": "model"}, datasets=datasets)
    process = start(tmp_path, job, "http://127.0.0.1:9", shared=small_disk)
    process.communicate(timeout=60)
    message = last_word(tmp_path)
    assert (process.returncode, message.reason) == (1, Reason.STORAGE_FULL), message.message
    assert "cannot be written" in message.message
    assert "Make the volume larger, or remove files" in message.message
    assert files_under(small_disk) == before


def test_a_shared_filesystem_that_cannot_be_written_says_for_whom(server: HubServer, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(shared)], check=True)
    try:
        process = start(tmp_path, write_job(tmp_path), server.endpoint, shared=shared)
        process.communicate(timeout=60)
    finally:
        subprocess.run(["umount", str(shared)], check=True)
    message = last_word(tmp_path)
    assert (process.returncode, message.reason) == (1, Reason.STORAGE_NOT_WRITABLE)
    assert "fsGroup" in message.message
