"""Numbers in fp8 and NF4: the Triton kernels against their twins, and the twins against the formats' definitions.

Where there is a GPU the kernels run on it; elsewhere Triton's interpreter runs them (`tests/conftest.py`).
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune_trainer.fused.frozen.nf4 import round_to_nf4
from finetune_trainer.kernels import on_gpu, plain
from finetune_trainer.kernels.formats import E4M3, LOW_FACTOR, NF4_VALUES, NUM_PEAKS, AdapterTail, RoundedRows

HAS_GPU = Path("/dev/nvidiactl").exists()
KERNELS = [plain, on_gpu]
# e4m3 has four bits of precision: half a step is at most 1/16 of a number, on average less than half of that.
E4M3_ERROR = 1 / 32
LARGEST_E4M3 = 448.0


def allowed(kernels: object, share: float) -> float:
    """The error that rounding costs. NB: Triton's interpreter cuts numbers off where a GPU rounds them."""
    return share if kernels is plain or HAS_GPU else 3 * share


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.device("cuda" if HAS_GPU else "cpu"):
        yield


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours.float() - expected.float()).norm() / expected.float().norm())


def no_peaks() -> Tensor:
    return torch.zeros(NUM_PEAKS)


# --- fp8 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 9000], ids=["at once", "in parts"])
@pytest.mark.parametrize("kernels", KERNELS, ids=["plain", "triton"])
def test_a_row_is_rounded_with_a_scale_of_its_own(kernels: object, columns: int) -> None:
    values = torch.randn(3, columns + 8)[:, :columns] * torch.tensor([[1e-4], [1.0], [1e4]])
    rounded, scales = kernels.round_rows(values, None, no_peaks(), columns + 24)  # type: ignore[attr-defined]
    assert rounded.dtype is E4M3
    restored = rounded.float() * scales[:, None]
    assert all(error(restored[row, 24:], values[row]) < allowed(kernels, E4M3_ERROR) for row in range(3))
    assert not restored[:, :24].any()
    assert torch.allclose(rounded.float().abs().amax(1), torch.full((3,), 64.0))


@pytest.mark.parametrize("size", [1e-2, 1.0, 1e4], ids=["smaller than the row", "as large", "far larger"])
@pytest.mark.parametrize("kernels", KERNELS, ids=["plain", "triton"])
def test_an_adapters_columns_keep_eight_bits_and_nothing_clips(kernels: object, size: float) -> None:
    values, narrow = torch.randn(4, 100), torch.randn(4, 13)[:, :11] * size
    rounded, scales = kernels.round_rows(values, narrow, no_peaks(), 256)  # type: ignore[attr-defined]
    restored = rounded.float() * scales[:, None]
    high, low, again = restored[:, :33].split(11, dim=1)
    assert error(high + low, narrow) < allowed(kernels, 1 / 256)
    # The last one is multiplied with what is kept 32 times as large.
    torch.testing.assert_close(again * 32, high, rtol=0, atol=32 * 2**-9 * scales.max().item())
    assert not restored[:, 33:156].any()
    assert error(restored[:, 156:], values) < allowed(kernels, E4M3_ERROR * max(1.0, size))
    assert rounded.float().abs().max() < LARGEST_E4M3


@pytest.mark.parametrize("kernels", KERNELS, ids=["plain", "triton"])
def test_the_first_of_an_adapters_columns_is_the_nearest_number(kernels: object) -> None:
    """Numbers between two of e4m3 among them, and those below its smallest normal one."""
    narrow = torch.cat([torch.arange(-223.0, 224.0, 0.5), torch.arange(-40.0, 41.0) / 2**12])[None, :]
    width = 16 + 3 * narrow.shape[1]
    rounded, scales = kernels.round_rows(torch.full((1, 16), 64.0), narrow, no_peaks(), width)  # type: ignore[attr-defined]
    assert scales.item() == 1.0
    assert torch.equal(rounded.float()[:, : narrow.shape[1]], narrow.to(E4M3).float())


def normalise(kernels: Any, random: Callable[..., Tensor], out: Tensor, rounded: RoundedRows) -> None:
    kernels.add_and_normalise(random(*out.shape), random(*out.shape), random(out.shape[1]), 1e-5, out, None, rounded)


def normalise_backward(kernels: Any, random: Callable[..., Tensor], out: Tensor, rounded: RoundedRows) -> None:
    gradient, hidden, residual = (random(*out.shape) for _ in range(3))
    kernels.normalise_backward(gradient, hidden, torch.ones(len(out)), random(out.shape[1]), residual, out, rounded)


def gate(kernels: Any, random: Callable[..., Tensor], out: Tensor, rounded: RoundedRows) -> None:
    kernels.gate(random(len(out), 2 * out.shape[1]), out, rounded)


def gate_backward(kernels: Any, random: Callable[..., Tensor], out: Tensor, rounded: RoundedRows) -> None:
    kernels.gate_backward(random(*out.shape), random(len(out), out.shape[1] // 2), out, True, rounded)


def rotate_backward(kernels: Any, random: Callable[..., Tensor], out: Tensor, rounded: RoundedRows) -> None:
    tokens, head_dim, kv_heads = len(out), 20, 3
    heads = random(out.shape[1] // head_dim, tokens, head_dim).transpose(0, 1)
    parts = heads.split([heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    angles = torch.arange(tokens * head_dim // 2, dtype=torch.float32).view(tokens, -1)
    kernels.rotate_backward(*parts, angles.cos(), angles.sin(), torch.arange(tokens), True, out, rounded)


@pytest.mark.parametrize("size", [None, 1e-2, 1e4], ids=["no adapter", "a small adapter", "an adapter without room"])
@pytest.mark.parametrize("write", [normalise, normalise_backward, gate, gate_backward, rotate_backward])
@pytest.mark.parametrize("kernels", KERNELS, ids=["plain", "triton"])
def test_who_writes_rows_can_round_them_to_what_rounding_them_later_gives(
    kernels: Any, write: Callable[[Any, Callable[..., Tensor], Tensor, RoundedRows], None], size: float | None
) -> None:
    tokens, columns, width, random = 11, 4300, 4400, partial(torch.randn, dtype=torch.bfloat16)
    out = random(tokens, columns + 8)[:, :columns]
    rounded = RoundedRows(torch.ones(tokens, width).to(E4M3), torch.empty(tokens), width - columns)
    write(kernels, random, out, rounded)
    narrow = None if size is None else random(tokens, 13)[:, :11]
    if narrow is not None and size is not None:
        narrow[4] *= size  # of one row, whose neighbours are not rounded again
    kernels.write_adapter_columns(rounded, out, narrow, no_peaks())
    expected, scales = kernels.round_rows(out, narrow, no_peaks(), width)
    assert torch.equal(rounded.scales, scales)
    assert torch.equal(rounded.numbers.float(), expected.float())


@pytest.mark.parametrize("kernels", KERNELS, ids=["plain", "triton"])
def test_a_row_of_zeros_stays_one(kernels: object) -> None:
    rounded, scales = kernels.round_rows(torch.zeros(2, 16), torch.zeros(2, 3), no_peaks(), 32)  # type: ignore[attr-defined]
    assert not rounded.float().any()
    assert torch.isfinite(scales).all()


def adapted_product(kernels: object, size_of_b: float) -> tuple[Tensor, Tensor]:
    """Compute x W' + t B' with the columns of three adapters in fp8, and in fp32; W has a row of zeros."""
    inputs, outputs, ranks, width = 64, 48, 5, 128
    x, weight = torch.randn(7, inputs), torch.randn(outputs, inputs) * 0.05
    weight[3] = 0
    t, matrix_b = torch.randn(7, ranks), torch.randn(ranks, outputs).T * size_of_b
    scales = (weight.abs().amax(1) / 64).clamp(min=1e-3)
    numbers = torch.zeros(outputs, width, dtype=E4M3)
    numbers[:, width - inputs :] = (weight / scales[:, None]).to(E4M3)
    peaks = torch.full((NUM_PEAKS,), 1e6)  # what an earlier step has left
    kernels.make_tail_writer([AdapterTail(matrix_b, numbers[:, : width - inputs], scales, peaks)])()  # type: ignore[attr-defined]
    assert numbers.float().abs().max() < LARGEST_E4M3
    rounded, row_scales = kernels.round_rows(x, t, peaks, width)  # type: ignore[attr-defined]
    assert rounded.float().abs().max() < LARGEST_E4M3
    # The kernel of a GPU multiplies 16 columns and more, in a format of 16 bits.
    multiply = plain.multiply_rounded if kernels is plain or not HAS_GPU else on_gpu.multiply_rounded
    ours = multiply(rounded, row_scales, numbers, scales, torch.bfloat16)
    frozen = rounded[:, width - inputs :].float() @ numbers[:, width - inputs :].float().T
    frozen *= row_scales[:, None] * scales
    return ours.float() - frozen, t @ matrix_b.T


@pytest.mark.parametrize("size_of_b", [0.01, 1.0, 1e5], ids=["as trained", "larger than W", "a million times W"])
@pytest.mark.parametrize("kernels", KERNELS, ids=["plain", "triton"])
def test_an_adapter_takes_part_in_a_product_in_fp8_near_bf16(kernels: object, size_of_b: float) -> None:
    through_adapter, expected = adapted_product(kernels, size_of_b)
    # The result is rounded to bf16 with the frozen part, which is larger than a small adapter's.
    assert error(through_adapter, expected) < allowed(kernels, 0.03 if size_of_b < 1 else 0.01)


@pytest.mark.parametrize("kernels", KERNELS, ids=["plain", "triton"])
def test_adapters_of_several_weights_are_written_at_once(kernels: object) -> None:
    adapters = [torch.randn(rows, ranks + 2)[:, :ranks] for rows, ranks in ((70, 3), (5, 8), (2000, 1))]
    tails = [
        AdapterTail(adapter, torch.zeros(len(adapter), 40, dtype=E4M3)[:, :32], torch.ones(len(adapter)), no_peaks())
        for adapter in adapters
    ]
    kernels.make_tail_writer(tails)()  # type: ignore[attr-defined]
    for adapter, tail in zip(adapters, tails, strict=True):
        high, again, low = tail.numbers.float()[:, : 3 * adapter.shape[1]].split(adapter.shape[1], dim=1)
        assert error(high + low / 32, adapter) < allowed(kernels, 1 / 256)
        assert torch.equal(high, again)
        assert tail.peaks.max().item() == pytest.approx(adapter.abs().max().item(), rel=1e-6)


@pytest.mark.parametrize("share", [1e-5, 1e-4, 1e-2], ids=["a 100,000th", "a 10,000th", "a hundredth"])
@pytest.mark.parametrize("kernels", KERNELS, ids=["plain", "triton"])
def test_an_adapter_after_its_first_step_is_not_lost_beside_its_weight(kernels: object, share: float) -> None:
    """The rows' largest numbers are 64, the steps of e4m3 never finer than 2^-9: a hundred thousandth is less."""
    adapter = (torch.rand(40, 8) + 0.5) * torch.randn(40, 8).sign() * 64 * share
    numbers = torch.zeros(40, 32, dtype=E4M3)
    kernels.make_tail_writer([AdapterTail(adapter, numbers, torch.ones(40), no_peaks())])()  # type: ignore[attr-defined]
    high, _, low = numbers.float()[:, :24].split(8, dim=1)
    assert error(high + low / LOW_FACTOR, adapter) < allowed(kernels, 1 / 16)


def test_a_product_in_fp8_is_that_of_the_rounded_numbers() -> None:
    rows, columns = (torch.randn(shape).to(E4M3) for shape in ((16, 32), (48, 32)))
    row_scales, column_scales = torch.rand(16) + 0.5, torch.rand(48) + 0.5
    expected = (rows.float() * row_scales[:, None]) @ (columns.float() * column_scales[:, None]).T
    for kernels in KERNELS if HAS_GPU else [plain]:
        product = kernels.multiply_rounded(rows, row_scales, columns, column_scales, torch.bfloat16)
        assert error(product, expected) < 5e-3


# --- NF4 --------------------------------------------------------------------------------------------------------------


def test_the_values_of_nf4_are_quantiles_of_the_normal_distribution() -> None:
    """As QLoRA defines them: eight steps above zero and seven below, from the quantile that 15.5 halves leave."""
    offset = 1 - (1 / (2 * 15) + 1 / (2 * 16)) / 2
    quantile = NormalDist().inv_cdf
    above = [quantile(offset + (0.5 - offset) * step / 8) for step in range(8)]
    below = [-quantile(offset + (0.5 - offset) * step / 7) for step in range(7)]
    expected = sorted([*below, 0.0, *above])
    assert pytest.approx([value / expected[-1] for value in expected], abs=2e-6) == NF4_VALUES


def test_numbers_become_the_nearest_values_of_nf4() -> None:
    numbers = torch.randn(3 * 64)
    numbers[64:128] = 0
    packed, peaks = round_to_nf4(numbers, torch.tensor(NF4_VALUES))
    codes = torch.stack([packed >> 4, packed & 15], dim=1).view(3, 64)
    assert peaks.tolist() == numbers.view(3, 64).abs().amax(1).bfloat16().tolist()
    shares = numbers.view(3, 64) / peaks.float().clamp(min=1e-30)[:, None]
    nearest = (shares[:, :, None] - torch.tensor(NF4_VALUES)).abs().argmin(-1)
    assert torch.equal(codes.long(), nearest)
    assert (codes[1] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "columns"), [(6, 32), (2, 192), (3, 8192)])
@pytest.mark.parametrize("kernels", KERNELS, ids=["plain", "triton"])
def test_a_weight_in_nf4_is_written_into_a_wider_buffer(
    kernels: object, rows: int, columns: int, dtype: torch.dtype
) -> None:
    codes, peaks = torch.randint(16, (rows * columns,)), torch.rand(rows * columns // 64).bfloat16()
    packed = (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)
    values = torch.tensor(NF4_VALUES)
    whole = torch.full((rows + 1, columns + 8), 7.0, dtype=dtype)
    kernels.expand_nf4(packed, peaks, values, whole[:rows, :columns])  # type: ignore[attr-defined]
    expected = (values[codes].view(-1, 64) * peaks.float()[:, None]).view(rows, columns)
    assert error(whole[:rows, :columns], expected) < (1e-6 if dtype is torch.float32 else 5e-3)
    assert (whole[rows] == 7).all()
    assert (whole[:, columns:] == 7).all()
