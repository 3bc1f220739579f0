"""Rows in fp8 as a GPU rounds them, against the twin in PyTorch's operations on the same GPU, product by product."""

from functools import partial

import pytest
import torch
from torch import Tensor

from finetune_trainer.fused.frozen.fp8 import Fp8Fast, NarrowWeight
from finetune_trainer.fused.frozen.weight import GroupSize
from finetune_trainer.kernels import on_gpu, plain
from finetune_trainer.kernels.formats import LOW_FACTOR, NUM_PEAKS

GPU = torch.device("cuda", 0)
TOKENS = 500
WIDTH_MULTIPLE = 128

# Columns and ranks of what is rounded in a model of 1,024 features with an adapter of rank 64, and in one of 8B.
PRODUCTS = {
    "q, k and v": (1024, 192),
    "gate and up": (1024, 128),
    "attention's output": (1024, 64),
    "down": (2816, 64),
    "head": (1024, 0),
    "q, k and v, rank 128": (1024, 384),
    "q, k and v of 500 features": (500, 192),
    "q, k and v, backward": (1536, 192),
    "gate and up, backward": (5632, 128),
    "q, k and v of 8B": (4096, 192),
    "gate and up of 8B": (4096, 128),
    "down of 8B": (14336, 64),
}


def product(columns: int, ranks: int, apart: bool) -> tuple[Tensor, Tensor | None]:
    """Values and an adapter's narrow side, in one buffer as most products have them, or apart."""
    generator = torch.Generator(GPU).manual_seed(columns + ranks)
    joined = torch.randn(TOKENS, columns + ranks, generator=generator, device=GPU).bfloat16()
    values, narrow = joined[:, :columns], joined[:, columns:] if ranks else None
    if apart:
        values, narrow = values.clone(), None if narrow is None else narrow.clone()
    return values, narrow


@pytest.mark.parametrize("size", [1e-6, 1.0], ids=["gradients", "activations"])
@pytest.mark.parametrize("apart", [False, True], ids=["one buffer", "apart"])
@pytest.mark.parametrize(("columns", "ranks"), PRODUCTS.values(), ids=PRODUCTS.keys())
def test_rows_are_rounded_as_by_the_twin(columns: int, ranks: int, apart: bool, size: float) -> None:
    values, narrow = product(columns, ranks, apart)
    values = values.mul_(size)
    narrow = None if narrow is None else narrow.mul_(size)
    peaks = torch.zeros(NUM_PEAKS, device=GPU)
    peaks[0] = 100.0  # of an adapter that leaves itself room
    width = columns + -(-3 * ranks // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    expected, expected_scales = plain.round_rows(values, narrow, peaks, width)
    found, scales = on_gpu.round_rows(values, narrow, peaks, width)
    torch.testing.assert_close(scales, expected_scales, rtol=1e-5, atol=0)
    # The one divides by a scale, the other multiplies with its inverse: numbers between two of e4m3 may go either way.
    differs = found.float() != expected.float()
    assert differs[:, width - columns :].float().mean() < 0.01
    assert differs[:, 3 * ranks : width - columns].sum() == 0
    parts = (rounded.float()[:, : 3 * ranks] for rounded in (found, expected))
    ours, theirs = (part.unflatten(1, (3, ranks)) if ranks else part for part in parts)
    if ranks:
        torch.testing.assert_close(ours[:, 0] + ours[:, 1], theirs[:, 0] + theirs[:, 1], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(ours[:, 2] * LOW_FACTOR, ours[:, 0], rtol=0, atol=LOW_FACTOR * 2**-9)


@pytest.mark.parametrize("size_of_b", [1e-5, 5e-5, 1e-3])
@pytest.mark.parametrize(("columns", "outputs"), [(576, 3072), (1536, 576), (4096, 6144)])
def test_what_an_adapter_has_learnt_in_its_first_steps_reaches_the_product(
    columns: int, outputs: int, size_of_b: float
) -> None:
    """Tensor cores cut off what is far smaller than a sum: of the last columns 7 to 17 % arrive at the first size."""
    generator = torch.Generator(GPU).manual_seed(columns)
    random = partial(torch.randn, generator=generator, device=GPU, dtype=torch.bfloat16)
    size = GroupSize(inputs=columns, outputs=outputs, ranks=64, columns=64)
    weight = Fp8Fast(torch.bfloat16, GPU).make_weight(size)
    assert isinstance(weight, NarrowWeight)
    weight.load(random(outputs, columns) * 0.05)
    x, t = random(4096, columns), random(4096, 64)
    without = weight.forward_apart(x, t).float()
    weight.matrix_b.copy_(random(outputs, 64) * size_of_b)
    on_gpu.make_tail_writer(weight.tails())()
    learnt = t.float() @ weight.matrix_b.float().T
    change = weight.forward_apart(x, t).float() - without
    # Most of a change is less than a step of bf16; over so many numbers it is there.
    assert ((change * learnt).sum() / learnt.square().sum()).item() == pytest.approx(1, abs=0.1)
