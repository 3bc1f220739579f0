"""Each Triton kernel against its twin in PyTorch, and the twin against autograd.

Where there is a GPU the kernels run on it; elsewhere Triton's interpreter runs them (`tests/conftest.py`).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from finetune_trainer.kernels import on_gpu, plain

HAS_GPU = Path("/dev/nvidiactl").exists()
TOKENS, SIZE, EPSILON = 5, 24, 1e-5
FORMATS = {"fp32": (torch.float32, 1e-5), "bf16": (torch.bfloat16, 1e-2)}


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with torch.device("cuda" if HAS_GPU else "cpu"):
        yield


@pytest.fixture(params=FORMATS.values(), ids=FORMATS.keys())
def form(request: pytest.FixtureRequest) -> tuple[torch.dtype, float]:
    """A number format, and the relative error that rounding to it allows."""
    torch.manual_seed(0)
    parameters: tuple[torch.dtype, float] = request.param
    return parameters


def wide(rows: int, columns: int, dtype: torch.dtype, beside: int = 8) -> Tensor:
    """Random columns of a wider buffer; the others are not to be touched."""
    return torch.randn(rows, columns + beside).to(dtype)[:, :columns]


def copies(*tensors: Tensor) -> list[Tensor]:
    """The same values in buffers of their own that are as wide."""
    result = []
    for tensor in tensors:
        base = tensor if tensor._base is None else tensor._base
        result.append(base.clone().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()))
    return result


def assert_close(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (ours.float() - expected.float()).norm() <= tolerance * expected.float().norm()


def test_a_sum_is_normalised(form: tuple[torch.dtype, float]) -> None:
    dtype, tolerance = form
    residual, addend, weight = (torch.randn(shape).to(dtype) for shape in ((TOKENS, SIZE), (TOKENS, SIZE), (SIZE,)))
    expected, ours = wide(TOKENS, SIZE, dtype), wide(TOKENS, SIZE, dtype)
    summed, inverse_rms = plain.add_and_normalise(residual, addend, weight, EPSILON, expected)
    assert_close(expected, functional.rms_norm(residual + addend, (SIZE,), weight, EPSILON), tolerance)
    found = on_gpu.add_and_normalise(residual, addend, weight, EPSILON, ours)
    # NB: the interpreter cuts numbers off where a GPU rounds them to bf16.
    assert_close(found[0], summed, tolerance)
    assert_close(found[1], inverse_rms, tolerance)
    assert_close(ours, expected, tolerance)


def test_nothing_is_added_where_there_is_nothing() -> None:
    residual, weight = torch.randn(TOKENS, SIZE), torch.randn(SIZE)
    out = torch.empty(TOKENS, SIZE)
    summed, _ = on_gpu.add_and_normalise(residual, None, weight, EPSILON, out)
    assert summed is residual
    assert_close(out, functional.rms_norm(residual, (SIZE,), weight, EPSILON), 1e-5)


def test_a_norms_gradient_joins_that_of_the_residual_stream(form: tuple[torch.dtype, float]) -> None:
    dtype, tolerance = form
    hidden, weight = torch.randn(TOKENS, SIZE).to(dtype), torch.randn(SIZE).to(dtype)
    inverse_rms = torch.rsqrt(hidden.float().square().mean(-1) + EPSILON)
    gradient, residual, out = (wide(TOKENS, SIZE, dtype) for _ in range(3))
    leaf = hidden.float().requires_grad_()
    normalised = functional.rms_norm(leaf, (SIZE,), weight.float(), EPSILON)
    (through_norm,) = torch.autograd.grad(normalised, leaf, gradient.float())

    for kernels in (plain, on_gpu):
        own_gradient, own_out = copies(gradient, out)
        kernels.normalise_backward(own_gradient, hidden, inverse_rms, weight, residual, own_out)
        assert_close(own_out, residual.float() + through_norm, tolerance)
        assert_close(own_gradient, normalised.detach(), tolerance)


@pytest.mark.parametrize("interleaved", [True, False], ids=["neighbours", "halves"])
def test_heads_are_turned_and_turned_back(form: tuple[torch.dtype, float], interleaved: bool) -> None:
    dtype, tolerance = form
    head_dim, heads, kv_heads = 8, 3, 2
    angles = torch.outer(torch.arange(20), 100 ** (-torch.arange(0, 1, 2 / head_dim)))
    positions = torch.tensor([0, 7, 19, 3, 1])
    table = (angles.cos(), angles.sin(), positions, interleaved)
    original = wide(TOKENS, (heads + 2 * kv_heads) * head_dim, dtype)
    for kernels in (plain, on_gpu):
        (turned,) = copies(original)
        kernels.rotate(turned, heads + kv_heads, head_dim, *table)
        assert_close(
            _complex(turned, head_dim, interleaved), _turned_by_hand(original, *table[:3], interleaved), tolerance
        )
        parts = turned.unflatten(1, (-1, head_dim)).split((heads, kv_heads, kv_heads), dim=1)
        back = torch.empty_like(original)
        # As attention leaves gradients: heads first in memory.
        kernels.rotate_backward(*(part.transpose(0, 1).contiguous().transpose(0, 1) for part in parts), *table, back)
        assert_close(back, original, tolerance)


def _complex(columns: Tensor, head_dim: int, interleaved: bool) -> Tensor:
    heads = columns.float().unflatten(1, (-1, head_dim))
    pairs = heads.unflatten(2, (-1, 2)) if interleaved else heads.unflatten(2, (2, -1)).transpose(2, 3)
    return torch.view_as_real(torch.view_as_complex(pairs.contiguous()))


def _turned_by_hand(columns: Tensor, cosine: Tensor, sine: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """Multiply by e^(i angle); the last two of seven heads are values, which do not turn."""
    numbers = torch.view_as_complex(_complex(columns, 8, interleaved).contiguous())
    turn = torch.complex(cosine[positions], sine[positions])[:, None]
    return torch.view_as_real(torch.cat([numbers[:, :5] * turn, numbers[:, 5:]], dim=1))


def test_the_gate_and_its_gradients(form: tuple[torch.dtype, float]) -> None:
    dtype, tolerance = form
    both, gradient = wide(TOKENS, 2 * SIZE, dtype), wide(TOKENS, SIZE, dtype)
    leaf = both.float().requires_grad_()
    product = functional.silu(leaf[:, :SIZE]) * leaf[:, SIZE:]
    (expected,) = torch.autograd.grad(product, leaf, gradient.float())
    for kernels in (plain, on_gpu):
        out = wide(TOKENS, SIZE, dtype)
        kernels.gate(both, out)
        assert_close(out, product.detach(), tolerance)
        (own_gradient,) = copies(gradient)
        gradients = wide(TOKENS, 2 * SIZE, dtype)
        kernels.gate_backward(both, own_gradient, gradients, False)
        assert_close(gradients, expected, tolerance)
        torch.testing.assert_close(own_gradient, gradient, rtol=0, atol=0)  # nobody wants the product
        kernels.gate_backward(both, own_gradient, gradients, True)
        assert_close(gradients, expected, tolerance)
        assert_close(own_gradient, product.detach(), tolerance)


# NB: the interpreter multiplies the bit patterns of bf16 matrices as if they were whole numbers.
FORMATS_OF_PRODUCTS = FORMATS if HAS_GPU else {"fp32": FORMATS["fp32"]}


@pytest.mark.parametrize("rank", [3, 16])
@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS_OF_PRODUCTS.values(), ids=FORMATS_OF_PRODUCTS.keys())
def test_the_gate_adds_to_the_adapters_gradients(dtype: torch.dtype, tolerance: float, rank: int) -> None:
    tokens, size = 37, 72
    both, gradient = wide(tokens, 2 * size, dtype), wide(tokens, size, dtype)
    u, t = wide(tokens, rank, dtype), wide(tokens, 2 * rank, dtype)
    before = [torch.randn(shape) for shape in ((rank, size), (size, rank), (size, rank))]
    (product,) = copies(gradient)
    gradients = wide(tokens, 2 * size, dtype)
    plain.gate_backward(both, product, gradients, True)
    by_gate, by_up = gradients.float().chunk(2, dim=1)
    narrow = t.float()
    expected = [
        before[0] + u.float().T @ product.float(),
        before[1] + by_gate.T @ narrow[:, :rank],
        before[2] + by_up.T @ narrow[:, rank:],
    ]
    for kernels in (plain, on_gpu):
        sums, out = [tensor.clone() for tensor in before], wide(tokens, 2 * size, dtype)
        kernels.gate_backward_with_adapters(both, *copies(gradient), out, u, t, *sums)
        assert_close(out, gradients, tolerance)
        for ours, theirs in zip(sums, expected, strict=True):
            assert_close(ours, theirs, tolerance)


def test_matrices_are_copied_to_their_places(form: tuple[torch.dtype, float]) -> None:
    dtype, tolerance = form
    matrices = [torch.randn(shape) for shape in ((3, 700), (700, 4), (1, 1))]
    for kernels in (plain, on_gpu):
        whole = torch.zeros(1000, 800).to(dtype)
        places = [whole[5:8, 10:710], whole[100:800, 3:7], whole[999:, 799:]]
        kernels.make_copier(list(zip(places, matrices, strict=True)))()
        for place, matrix in zip(places, matrices, strict=True):
            assert_close(place, matrix, tolerance)
        assert whole.count_nonzero() == 3 * 700 + 700 * 4 + 1


@pytest.mark.parametrize("vocabulary", [7, 50, 9000])
def test_cross_entropy_leaves_the_gradient_of_the_logits(form: tuple[torch.dtype, float], vocabulary: int) -> None:
    dtype, tolerance = form
    logits, targets = (3 * torch.randn(4, vocabulary)).to(dtype), torch.randint(vocabulary, (4,))
    leaf = logits.float().requires_grad_()
    losses = functional.cross_entropy(leaf, targets, reduction="none")
    (expected,) = torch.autograd.grad(losses.sum(), leaf)
    for kernels in (plain, on_gpu):
        (own,) = copies(logits)
        torch.testing.assert_close(kernels.cross_entropy(own, targets), losses.detach(), rtol=1e-5, atol=1e-5)
        assert_close(own, expected, tolerance)


def seed_of(number: int) -> torch.Tensor:
    return torch.tensor(number)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    ones, out = torch.ones(200, 500), torch.empty(200, 500)
    plain.drop(ones, 0.1, seed_of(12345), 0, out)
    assert (out == 0).float().mean().item() == pytest.approx(0.1, abs=0.003)
    assert out.mean().item() == pytest.approx(1.0, abs=0.004)
    # Neither rows nor columns are dropped together.
    assert (out == 0).float().mean(0).std().item() == pytest.approx((0.1 * 0.9 / 200) ** 0.5, rel=0.1)
    assert (out == 0).float().mean(1).std().item() == pytest.approx((0.1 * 0.9 / 500) ** 0.5, rel=0.15)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("seed", "first_row"), [(0, 0), (1, 4096), (2**31 - 2, 1 << 20)])
def test_both_kernels_drop_the_same(probability: float, seed: int, first_row: int) -> None:
    values, total = wide(3, 2100, torch.float32), wide(3, 2100, torch.float32)
    expected, ours = copies(total, total)
    own = seed_of(seed).to(values.device)
    plain.drop(values, probability, own, first_row, expected)
    on_gpu.drop(values, probability, own, first_row, ours)
    torch.testing.assert_close(ours, expected)
    added, ours = copies(total, total)
    plain.add_dropped(added, values, probability, own, first_row)
    torch.testing.assert_close(added, total + expected)
    on_gpu.add_dropped(ours, values, probability, own, first_row)
    torch.testing.assert_close(ours, added)


def test_seeds_drop_different_values() -> None:
    kept = []
    for seed in (1, 2):
        out = torch.empty(50, 100)
        plain.drop(torch.ones(50, 100), 0.5, seed_of(seed), 0, out)
        kept.append(out > 0)
    assert (kept[0] == kept[1]).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_rows_of_a_matrix_drop_what_the_matrix_drops() -> None:
    values, whole = torch.randn(9, 40), torch.empty(9, 40)
    plain.drop(values, 0.5, seed_of(3), 0, whole)
    for kernels in (plain, on_gpu):
        part = torch.empty(5, 40)
        kernels.drop(values[4:], 0.5, seed_of(3), 4, part)
        torch.testing.assert_close(part, whole[4:])


def test_rows_are_gathered_from_a_table_of_the_host() -> None:
    table = torch.randn(11, 2100, device="cpu")
    on_host = table.pin_memory() if HAS_GPU else table
    rows = torch.tensor([3, 10, 3, 0])
    assert torch.equal(plain.gather_rows(table, rows.cpu()), table[[3, 10, 3, 0]])
    assert torch.equal(on_gpu.gather_rows(on_host, rows).cpu(), table[[3, 10, 3, 0]])
