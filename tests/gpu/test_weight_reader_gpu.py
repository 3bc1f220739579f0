"""Weights that are read ahead into a GPU's memory."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune_trainer.weight_reader import find_tensors, read_tensors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda", 0)
CYCLES = 20_000_000  # a hundredth of a second, in which several tensors are read


def test_what_is_read_ahead_is_what_was_written_however_busy_the_gpu_is(tmp_path: Path) -> None:
    torch.manual_seed(3)
    layers = {f"model.layers.{number}.mlp.up_proj.weight": torch.randn(3001, 5003).bfloat16() for number in range(16)}
    save_file(layers | {"model.norm.weight": torch.randn(17)}, tmp_path / "model-1-of-1.safetensors")
    copies = {}
    for stored, tensor in read_tensors(find_tensors(tmp_path.iterdir()), GPU):
        assert tensor.device == GPU
        torch.cuda._sleep(CYCLES)
        copies[stored.name] = tensor.clone()
        tensor.fill_(-1)  # its memory is the next one's, when this is done
        del tensor
    assert len(copies) == 17
    for name, written in layers.items():
        assert torch.equal(copies[name].cpu(), written), name


def test_embeddings_and_head_stay_in_the_hosts_memory(tmp_path: Path) -> None:
    table = torch.randn(1000, 64)
    layer = {"model.layers.0.mlp.up_proj.weight": torch.randn(64, 64)}
    save_file({"model.embed_tokens.weight": table, "lm_head.weight": table + 1} | layer, tmp_path / "model.safetensors")
    places = {stored.name: tensor.device for stored, tensor in read_tensors(find_tensors(tmp_path.iterdir()), GPU)}
    assert places == {
        "model.embed_tokens.weight": torch.device("cpu"),
        "lm_head.weight": torch.device("cpu"),
        "model.layers.0.mlp.up_proj.weight": GPU,
    }
