"""Frozen weights in fp8 (e4m3, Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433), adapters near bf16.

A product in fp8 takes half the time and the energy of one in bf16, and wants its factors' rows along what is summed:
the forward pass takes a weight as [outputs, inputs], the backward pass as [inputs, outputs]. Each row has a scale of
its own, in weights as in activations.

Rounding costs 2.6 % of every factor. In gradients that is noise, which a training averages out; in the forward pass it
is another model, see docs/LOG.md. So there are two formats: `Fp8` rounds the backward pass only and keeps the weight
itself besides; `Fp8Fast` rounds both passes of all layers but the first and the last, in two layouts, which take what
bf16 takes once. The head stays exact: rounding it costs more of the loss than rounding all layers.

Three columns each make an adapter's column exact to about eight bits: v = hi + lo, both e4m3, and

    [t_hi | t_lo | t_hi / 32 | x]  times  [B_hi | B_hi | 32 B_lo | W]'  =  t B' + x W'  but for t_lo B_lo'

They come first, because tensor cores add up column after column and cut off what is far smaller than the sum so far:
behind x, 7 to 17 % of t B' arrive while an adapter is new (B = 1e-5), before x 94 %. That was what made the first steps
of a training in fp8-fast worse, see docs/LOG.md. What e4m3 leaves of so small a B, it holds 32 times as large.

Nothing clips. Columns of adapters share the scale of their row, so a row's largest number is put at 64, not at the 448
that e4m3 holds: its precision is the same down to 2^-6, and adapters have room above. An adapter that outgrows the
room is divided by a factor, which its narrow side is multiplied with, and which counts in the scale of the activations'
rows.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetune_trainer.fused.frozen.weight import Allocate, FrozenFormat, FrozenWeight, GroupSize, Operand, Places
from finetune_trainer.fused.frozen.whole import WholeWeight
from finetune_trainer.kernels import kernels_for
from finetune_trainer.kernels.formats import E4M3, NUM_PEAKS, ROW_PEAK, SMALLEST_SCALE, AdapterTail, RoundedRows
from finetune_trainer.planner.formats import num_exact_at_each_end

# Tensor cores take rows that start on 128 bytes.
WIDTH_MULTIPLE = 128
NUMBERS_AT_ONCE = 1 << 26


class Layout:
    """A matrix in fp8 with columns for the adapters before it, [rows, 3 ranks, rounded up, + columns].

    Attributes:
        numbers: e4m3.
        scales: of the rows, fp32.
        peaks: their largest is that of the adapter's numbers divided by the rows' scales, fp32 [NUM_PEAKS].
    """

    def __init__(self, rows: int, columns: int, ranks: int, device: torch.device, allocate: Allocate) -> None:
        self.columns = columns
        self._start = -(-3 * ranks // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        self.numbers = allocate((rows, self._start + columns), E4M3)
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
            self.numbers[part, self._start :] = (wide / scales[:, None]).to(E4M3)

    def tail(self, adapter: Tensor) -> AdapterTail:
        """Return where the columns of an adapter [rows, ranks] go."""
        return AdapterTail(adapter, self.numbers[:, : self._start], self.scales, self.peaks)

    def new_rounded(self, tokens: int) -> RoundedRows:
        """Return where the kernel that computes the left factor of a product writes it in fp8 as well."""
        device = self.numbers.device
        numbers = torch.empty(tokens, self.numbers.shape[1], dtype=E4M3, device=device)
        return RoundedRows(numbers, torch.empty(tokens, dtype=torch.float32, device=device), self._start)

    def multiply(self, values: Tensor, narrow: Tensor | None, rounded: RoundedRows | None = None) -> Tensor:
        """Return the product of values [tokens, columns], and of an adapter's narrow side, with all rows.

        Args:
            values: the left factor.
            narrow: [tokens, ranks]; None for none.
            rounded: of `new_rounded`, the values written; they are rounded here where it is not given.
        """
        kernels = kernels_for(values.device)
        if rounded is None:
            numbers, scales = kernels.round_rows(values, narrow, self.peaks, self.numbers.shape[1])
        else:
            kernels.write_adapter_columns(rounded, values, narrow, self.peaks)
            numbers, scales = rounded.numbers, rounded.scales
        product: Tensor = kernels.multiply_rounded(numbers, scales, self.numbers, self.scales, values.dtype)
        return product


class BackwardWeight(WholeWeight):
    """A weight in the format of the products, and once more in fp8, for the backward pass."""

    def __init__(self, size: GroupSize, dtype: torch.dtype, device: torch.device, allocate: Allocate) -> None:
        super().__init__(size, dtype, allocate)
        self._backward = Layout(size.inputs, size.outputs, size.ranks, device, allocate)

    def load(self, staged: Tensor) -> None:
        """Round the weight for the backward pass."""
        super().load(staged)
        self._backward.load(staged.T)

    def tails(self) -> list[AdapterTail]:
        """Return where the adapters' columns go."""
        return [self._backward.tail(self.matrix_a[: self.size.ranks].T)] if self.size.ranks else []

    def new_rounded_gradient(self, tokens: int) -> RoundedRows:
        """Return where g goes in fp8."""
        return self._backward.new_rounded(tokens)

    def backward(self, operand: Operand) -> Tensor:
        """Return g W + u A."""
        outputs, ranks = self.size.outputs, self.size.ranks
        narrow = operand.joined[:, outputs : outputs + ranks] if ranks else None
        return self._backward.multiply(operand.joined[:, :outputs], narrow, operand.rounded)

    def backward_frozen(self, operand: Operand) -> Tensor:
        """Return g W, whatever u is."""
        return self._backward.multiply(operand.joined[:, : self.size.outputs], None, operand.rounded)


class NarrowWeight(FrozenWeight):
    """A weight in two layouts, with its adapters in the format of the products besides."""

    def __init__(self, size: GroupSize, dtype: torch.dtype, device: torch.device, allocate: Allocate) -> None:
        super().__init__(size)
        self._dtype = dtype
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

    def new_rounded_input(self, tokens: int) -> RoundedRows:
        """Return where x goes in fp8."""
        return self._forward.new_rounded(tokens)

    def new_rounded_gradient(self, tokens: int) -> RoundedRows:
        """Return where g goes in fp8."""
        return self._backward.new_rounded(tokens)

    def forward(self, operand: Operand, bias: Tensor | None) -> Tensor:
        """Return x W' + t B' + bias."""
        inputs = self.size.inputs
        x, narrow = operand.joined[:, :inputs], self._cut(operand.joined[:, inputs:])
        output = self._forward.multiply(x, narrow, operand.rounded)
        return output if bias is None else output.add_(bias)

    def forward_apart(self, x: Tensor, narrow: Tensor) -> Tensor:
        """Return x W' + t B'; where x and t lie makes no difference."""
        return self._forward.multiply(x, self._cut(narrow))

    def backward(self, operand: Operand) -> Tensor:
        """Return g W + u A."""
        outputs = self.size.outputs
        g, narrow = operand.joined[:, :outputs], self._cut(operand.joined[:, outputs:])
        return self._backward.multiply(g, narrow, operand.rounded)

    def backward_frozen(self, operand: Operand) -> Tensor:
        """Return g W, whatever u is."""
        return self._backward.multiply(operand.joined[:, : self.size.outputs], None, operand.rounded)

    def _cut(self, narrow: Tensor) -> Tensor | None:
        """Leave out the columns that rounding up has added."""
        return narrow[:, : self.size.ranks] if self.size.ranks else None


class _Fp8Format(FrozenFormat):
    """What both formats do before a step."""

    def make_refresh(
        self, weights: Sequence[FrozenWeight], places: Callable[[FrozenWeight], Places]
    ) -> Callable[[], None]:
        """Return what copies the adapters of all weights, and then their columns in fp8."""
        kernels = kernels_for(self.device)
        copy = kernels.make_copier([pair for weight in weights for pair in places(weight)])
        narrow = [weight for weight in weights if isinstance(weight, (BackwardWeight, NarrowWeight))]
        write_tails = kernels.make_tail_writer([tail for weight in narrow for tail in weight.tails()])

        def refresh() -> None:
            copy()
            write_tails()

        return refresh


class Fp8(_Fp8Format):
    """Weights in fp8 for gradients only."""

    def make_weight(self, size: GroupSize) -> FrozenWeight:
        """Return a weight without values."""
        return BackwardWeight(size, self.dtype, self.device, self.allocate)


class Fp8Fast(_Fp8Format):
    """Weights in fp8 for both passes, but for the first layers and the last, which are as in `Fp8`."""

    def of_layer(self, number: int, num_layers: int) -> FrozenFormat:
        """Return this format for the layers in the middle."""
        at_each_end = num_exact_at_each_end(num_layers)
        is_exact = not at_each_end <= number < num_layers - at_each_end
        return Fp8(self.dtype, self.device) if is_exact else self

    def make_weight(self, size: GroupSize) -> FrozenWeight:
        """Return a weight without values."""
        return NarrowWeight(size, self.dtype, self.device, self.allocate)
