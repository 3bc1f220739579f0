"""Weights that are read ahead. On a CPU the threads, the pieces and the order are the same; tests/gpu has the rest."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune_trainer import weight_reader
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.weight_reader import find_tensors, read_ahead, read_tensors

CPU = torch.device("cpu")
NAMES = ("model.layers.10.a.weight", "model.embed_tokens.weight", "model.layers.2.a.weight", "model.layers.2.b.weight")
FORMATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
OTHERS = ("model.layers.2.c.weight", "model.layers.0.a.weight", "lm_head.weight")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files, with layers in no order and one of them in both."""
    torch.manual_seed(5)
    paths = [tmp_path / "model-1-of-2.safetensors", tmp_path / "model-2-of-2.safetensors"]
    formats = list(FORMATS.values())
    for path, names in zip(paths, (NAMES, OTHERS), strict=True):
        tensors = {name: torch.randn(3, 5 + number).to(formats[number % 3]) for number, name in enumerate(names)}
        save_file(tensors, path)
    return paths


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_reader, "PIECE_BYTES", 7)  # no tensor is a whole number of them


def test_layers_come_in_their_order_whatever_files_hold_them(files: list[Path]) -> None:
    layers = [stored.name.split(".")[2] for stored in find_tensors(files) if ".layers." in stored.name]
    assert layers == ["0", "2", "2", "2", "10"]


@pytest.mark.parametrize("max_bytes", [0, 60, 1 << 20], ids=["mapped", "one at a time", "all at once"])
def test_each_tensor_is_the_one_that_was_written(files: list[Path], max_bytes: int) -> None:
    mapped = {stored.name: tensor for stored, tensor in read_tensors(find_tensors(files), CPU)}
    assert mapped.keys() == {*NAMES, *OTHERS}
    read = list(read_ahead(find_tensors(files), CPU, max_bytes, num_threads=3))
    assert [stored.name for stored, _ in read] == [stored.name for stored in find_tensors(files)]
    for stored, tensor in read:
        torch.testing.assert_close(tensor, mapped[stored.name], rtol=0, atol=0)
        assert tensor.dtype == FORMATS[stored.dtype]


def test_no_more_is_read_ahead_than_may_lie_there(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = find_tensors(files)
    begun: list[int] = []
    begin = weight_reader.Readers.begin

    def count(self: weight_reader.Readers, stored: weight_reader.StoredTensor) -> object:
        begun.append(stored.num_bytes)
        return begin(self, stored)

    monkeypatch.setattr(weight_reader.Readers, "begin", count)
    largest = max(stored.num_bytes for stored in tensors)
    done = 0
    for stored, _ in read_ahead(tensors, CPU, 2 * largest, num_threads=2):
        done += stored.num_bytes
        assert sum(begun) - done <= 2 * largest
    assert sum(begun) == sum(stored.num_bytes for stored in tensors)


def test_a_file_that_ends_early_is_named(files: list[Path]) -> None:
    tensors = find_tensors(files)
    files[1].write_bytes(files[1].read_bytes()[:-3])  # behind the header's check, as on a failing disk
    with pytest.raises(TrainerError, match=r"model-2-of-2\.safetensors: .*ends \d bytes early") as caught:
        list(read_ahead(tensors, CPU, 1 << 20, num_threads=2))
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE


def test_a_file_that_is_gone_is_named(files: list[Path]) -> None:
    tensors = find_tensors(files)
    files[0].unlink()
    with pytest.raises(TrainerError, match=r"model-1-of-2\.safetensors: cannot be read: .*No such file") as caught:
        list(read_ahead(tensors, CPU, 1 << 20, num_threads=2))
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE


def test_whoever_stops_early_leaves_no_thread(files: list[Path]) -> None:
    before = threading.active_count()
    reading = read_ahead(find_tensors(files), CPU, 1 << 20, num_threads=4)
    next(reading)
    assert threading.active_count() > before
    reading.close()
    assert threading.active_count() == before
