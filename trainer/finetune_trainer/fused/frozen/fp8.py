"""Frozen weights in fp8 (e4m3, Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433), adapters near bf16.

A product in fp8 takes half the time and the energy of one in bf16, and wants its factors' rows along what is summed: a
weight is kept twice, as [outputs, inputs] for the forward and as [inputs, outputs] for the backward pass, which takes
what bf16 takes once. Each row has a scale of its own, in weights as in activations.

Three columns each make an adapter's column exact to about eight bits: v = hi + lo, both e4m3, and

    [x | t_hi | t_lo | t_hi]  times  [W | B_hi | B_hi | B_lo]'  =  x W' + t B'  but for t_lo B_lo'

Nothing clips. Columns of adapters share the scale of their row, so a row's largest number is put at 64, not at the 448
that e4m3 holds: its precision is the same down to 2^-6, and adapters have room above. An adapter that outgrows the
room is divided by a factor, which its narrow side is multiplied with, and which counts in the scale of the activations'
rows.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetune_trainer.fused.frozen.weight import Allocate, FrozenFormat, FrozenWeight, GroupSize, Places
from finetune_trainer.kernels import kernels_for
from finetune_trainer.kernels.formats import E4M3, NUM_PEAKS, ROW_PEAK, SMALLEST_SCALE, AdapterTail

# Tensor cores take rows that start on 128 bytes.
WIDTH_MULTIPLE = 128
NUMBERS_AT_ONCE = 1 << 26


class Layout:
    """A matrix in fp8 with columns for the adapters behind it, [rows, columns + 3 ranks, rounded up].

    Attributes:
        numbers: e4m3.
        scales: of the rows, fp32.
        peaks: their largest is that of the adapter's numbers divided by the rows' scales, fp32 [NUM_PEAKS].
    """

    def __init__(self, rows: int, columns: int, ranks: int, device: torch.device, allocate: Allocate) -> None:
        self.columns = columns
        width = columns + -(-3 * ranks // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        self.numbers = allocate((rows, width), E4M3)
        self.scales = torch.ones(rows, dtype=torch.float32, device=device)
        self.peaks = torch.zeros(NUM_PEAKS, dtype=torch.float32, device=device)

    def load(self, matrix: Tensor) -> None:
        """Round a matrix, [rows, columns]."""
        rows_at_once = max(1, NUMBERS_AT_ONCE // self.columns)
        for start in range(0, len(matrix), rows_at_once):
            part = slice(start, start + rows_at_once)
            wide = matrix[part].float()
            scales = (wide.abs().amax(1) / ROW_PEAK).clamp(min=SMALLEST_SCALE)
            self.scales[part] = scales
            self.numbers[part, : self.columns] = (wide / scales[:, None]).to(E4M3)

    def tail(self, adapter: Tensor) -> AdapterTail:
        """Return where the columns of an adapter [rows, ranks] go."""
        return AdapterTail(adapter, self.numbers[:, self.columns :], self.scales, self.peaks)


class Fp8Weight(FrozenWeight):
    """A weight in two layouts, with its adapters in the format of the products besides."""

    def __init__(self, size: GroupSize, dtype: torch.dtype, device: torch.device, allocate: Allocate) -> None:
        super().__init__(size)
        self._dtype, self._kernels = dtype, kernels_for(device)
        self._forward = Layout(size.outputs, size.inputs, size.ranks, device, allocate)
        self._backward = Layout(size.inputs, size.outputs, size.ranks, device, allocate)
        # Zeros, as the columns that rounding up has left are multiplied with.
        self._matrix_a = torch.zeros(size.columns, size.inputs, dtype=dtype, device=device)
        self._matrix_b = torch.zeros(size.outputs, size.columns, dtype=dtype, device=device)

    def staging(self) -> Tensor:
        """Return a matrix of its own, which `load` rounds."""
        size = self.size
        return torch.empty(size.outputs, size.inputs, dtype=self._dtype, device=self._forward.numbers.device)

    def load(self, staged: Tensor) -> None:
        """Round the weight in both layouts."""
        self._forward.load(staged)
        self._backward.load(staged.T)

    def tails(self) -> list[AdapterTail]:
        """Return where the adapters' columns go in both layouts."""
        if not self.size.ranks:
            return []
        ranks = self.size.ranks
        return [self._forward.tail(self._matrix_b[:, :ranks]), self._backward.tail(self._matrix_a[:ranks].T)]

    @property
    def matrix_a(self) -> Tensor:
        """A in the format of the products."""
        return self._matrix_a

    @property
    def matrix_b(self) -> Tensor:
        """B in the format of the products."""
        return self._matrix_b

    def forward(self, joined: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W' + t B' + bias."""
        output = self._product(joined[:, : self.size.inputs], joined[:, self.size.inputs :], self._forward)
        return output if bias is None else output.add_(bias)

    def forward_apart(self, x: Tensor, narrow: Tensor) -> Tensor:
        """Return x W' + t B'; where x and t lie makes no difference."""
        return self._product(x, narrow, self._forward)

    def backward(self, joined: Tensor) -> Tensor:
        """Return g W + u A."""
        return self._product(joined[:, : self.size.outputs], joined[:, self.size.outputs :], self._backward)

    def backward_frozen(self, gradient: Tensor) -> Tensor:
        """Return g W."""
        return self._product(gradient, None, self._backward)

    def _product(self, values: Tensor, narrow: Tensor | None, layout: Layout) -> Tensor:
        tail = None if narrow is None or not self.size.ranks else narrow[:, : self.size.ranks]
        rounded, scales = self._kernels.round_rows(values, tail, layout.peaks, layout.numbers.shape[1])
        product: Tensor = self._kernels.multiply_rounded(rounded, scales, layout.numbers, layout.scales, self._dtype)
        return product


class Fp8(FrozenFormat):
    """Weights in fp8 with scales by row."""

    def make_weight(self, size: GroupSize) -> FrozenWeight:
        """Return a weight without values."""
        return Fp8Weight(size, self.dtype, self.device, self.allocate)

    def make_refresh(
        self, weights: Sequence[FrozenWeight], places: Callable[[FrozenWeight], Places]
    ) -> Callable[[], None]:
        """Return what copies the adapters of all weights, and then their columns in fp8."""
        kernels = kernels_for(self.device)
        copy = kernels.make_copier([pair for weight in weights for pair in places(weight)])
        tails = [tail for weight in weights if isinstance(weight, Fp8Weight) for tail in weight.tails()]
        write_tails = kernels.make_tail_writer(tails)

        def refresh() -> None:
            copy()
            write_tails()

        return refresh
