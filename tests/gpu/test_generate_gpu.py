"""Generation and loss on a GPU: the same turns as on the CPU, also where rows are padded and heads are shared."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune_trainer.architecture import read_shape
from finetune_trainer.data.render import Document
from finetune_trainer.evaluate.likelihood import document_losses
from finetune_trainer.inference.adapter import read_adapter
from finetune_trainer.inference.decoder import Decoder, load_decoder
from finetune_trainer.inference.generate import Writing, generate
from tests.peft_models import write_random_adapter
from tests.tiny_run import VOCABULARY_SIZE, write_tiny_model

RANDOM = np.random.default_rng(3)
PROMPTS = [RANDOM.integers(0, VOCABULARY_SIZE, length, dtype=np.int32) for length in (5, 1, 90, 17, 64)]


def decoders(directory: Path, dtype: torch.dtype) -> list[Decoder]:
    """The same model and adapter on the CPU and on the GPU. Heads are 64 wide, as real ones are at least."""
    model = write_tiny_model(directory / "base", hidden_size=256, num_attention_heads=4, num_key_value_heads=2)
    write_random_adapter(model, directory / "adapter")
    shape = read_shape(directory / "base")
    adapter = read_adapter(directory / "adapter", shape)
    return [load_decoder(directory / "base", shape, dtype, torch.device(name), adapter) for name in ("cpu", "cuda")]


@pytest.mark.parametrize("adapted", [False, True])
def test_greedy_turns_are_those_of_the_cpu(tmp_path: Path, adapted: bool) -> None:
    writing = Writing(frozenset({7}), 32, adapted)
    on_cpu, on_gpu = (generate(decoder, PROMPTS, writing, 5) for decoder in decoders(tmp_path, torch.float32))
    assert on_gpu == on_cpu


def test_in_bf16_a_turn_does_not_depend_on_what_is_written_beside_it(tmp_path: Path) -> None:
    _, decoder = decoders(tmp_path, torch.bfloat16)
    writing = Writing(frozenset(), 4, adapted=True)
    together = generate(decoder, PROMPTS, writing, 5)
    alone = [generate(decoder, [prompt], writing, 1)[0] for prompt in PROMPTS]
    # Kernels of other shapes round differently, and near ties go the other way: most tokens agree, not all.
    same = [
        one == other
        for row, single in zip(together, alone, strict=True)
        for one, other in zip(row.tokens, single.tokens, strict=True)
    ]
    assert np.mean(same) > 0.7


def test_the_loss_in_bf16_is_that_in_fp32_but_for_rounding(tmp_path: Path) -> None:
    documents = [Document(prompt, np.ones(len(prompt), np.bool_)) for prompt in PROMPTS if len(prompt) > 1]
    exact, _ = document_losses(decoders(tmp_path / "a", torch.float32)[0], documents, adapted=True)
    rounded, counts = document_losses(decoders(tmp_path / "b", torch.bfloat16)[1], documents, adapted=True)
    assert rounded.sum() / counts.sum() == pytest.approx(exact.sum() / counts.sum(), rel=0.02)
