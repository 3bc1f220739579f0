"""Frozen weights in NF4 (QLoRA, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314): 4.25 bits a number.

Each 64 numbers share their largest magnitude, kept in bf16; a number is the nearest of 16 values, that are quantiles of
the normal distribution. Before a product its weight is brought back into one workspace that all groups of all layers
share, with its adapters beside it, and is multiplied there as weights in bf16 are.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetune_trainer.fused.frozen.weight import Allocate, FrozenFormat, FrozenWeight, GroupSize, Places
from finetune_trainer.fused.frozen.whole import JoinedWeight
from finetune_trainer.kernels import kernels_for
from finetune_trainer.kernels.formats import NF4_BLOCK, NF4_VALUES

NUMBERS_AT_ONCE = 1 << 24


class Workspace:
    """Memory for the largest weight of a model with its adapters; one weight lies in it at a time."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._num_numbers = 0
        self._memory: Tensor | None = None
        self._tenant: Nf4Weight | None = None

    def reserve(self, num_numbers: int) -> None:
        """Make sure that there will be room; the memory is taken at the first use."""
        self._num_numbers = max(self._num_numbers, num_numbers)

    def forget(self) -> None:
        """Have the next weight written anew: adapters have changed."""
        self._tenant = None

    def hold(self, weight: "Nf4Weight") -> Tensor:
        """Return a weight in its buffer; what lay there before is gone."""
        if self._memory is None:
            self._memory = torch.empty(self._num_numbers, dtype=self._dtype, device=self._device)
        rows, columns = weight.size.outputs + weight.size.columns, weight.size.inputs + weight.size.columns
        buffer = self._memory[: rows * columns].view(rows, columns)
        if self._tenant is not weight:
            # Set first: writing the adapters asks for the buffer again.
            self._tenant = weight
            weight.write(buffer)
        return buffer


class Nf4Weight(JoinedWeight):
    """A weight in NF4.

    Attributes:
        packed: two numbers a byte, the first in the high half, uint8 [numbers / 2].
        peaks: largest magnitude of each block, bf16 [numbers / NF4_BLOCK].
    """

    def __init__(
        self, size: GroupSize, workspace: Workspace, dtype: torch.dtype, device: torch.device, allocate: Allocate
    ) -> None:
        super().__init__(size)
        num_numbers = size.outputs * size.inputs
        if num_numbers % NF4_BLOCK or size.inputs % 2:
            raise ValueError(f"a weight of {size.outputs} x {size.inputs} is no whole number of blocks of {NF4_BLOCK}")
        workspace.reserve((size.outputs + size.columns) * (size.inputs + size.columns))
        self._workspace, self._dtype, self._kernels = workspace, dtype, kernels_for(device)
        self._copy_adapters: Callable[[], None] | None = None
        self.packed = allocate((num_numbers // 2,), torch.uint8)
        self.peaks = allocate((num_numbers // NF4_BLOCK,), torch.bfloat16)
        self._values = torch.tensor(NF4_VALUES, dtype=torch.float32, device=device)

    def staging(self) -> Tensor:
        """Return a matrix of its own, which `load` rounds."""
        return torch.empty(self.size.outputs, self.size.inputs, dtype=self._dtype, device=self.packed.device)

    def load(self, staged: Tensor) -> None:
        """Round the weight."""
        numbers = staged.reshape(-1)
        for start in range(0, len(numbers), NUMBERS_AT_ONCE):
            packed, peaks = round_to_nf4(numbers[start : start + NUMBERS_AT_ONCE], self._values)
            self.packed[start // 2 : start // 2 + len(packed)] = packed
            self.peaks[start // NF4_BLOCK : start // NF4_BLOCK + len(peaks)] = peaks

    def buffer(self) -> Tensor:
        """Return the weight in the workspace."""
        return self._workspace.hold(self)

    def write(self, buffer: Tensor) -> None:
        """Write the weight and its adapters into a buffer of the workspace."""
        size = self.size
        self._kernels.expand_nf4(self.packed, self.peaks, self._values, buffer[: size.outputs, : size.inputs])
        if self._copy_adapters is not None and size.columns:
            buffer[: size.outputs, size.inputs :].zero_()
            buffer[size.outputs :].zero_()
            self._copy_adapters()

    def attach(self, places: Places) -> None:
        """Have the adapters' values written to their places whenever the weight is brought back."""
        if places:
            self._copy_adapters = self._kernels.make_copier(places)


def round_to_nf4(numbers: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Round numbers to NF4.

    Args:
        numbers: [a multiple of NF4_BLOCK].
        values: NF4_VALUES as fp32.

    Returns:
        two numbers a byte, and the largest magnitude of each block in bf16.
    """
    blocks = numbers.float().view(-1, NF4_BLOCK)
    peaks = blocks.abs().amax(1).bfloat16()
    # Zeros in a block of zeros.
    shares = blocks / peaks.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(shares, (values[1:] + values[:-1]) / 2, out_int32=True).to(torch.uint8).view(-1)
    return (codes[0::2] << 4) | codes[1::2], peaks


class Nf4(FrozenFormat):
    """Weights in NF4."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(dtype, device)
        self._workspace = Workspace(dtype, device)

    def make_weight(self, size: GroupSize) -> FrozenWeight:
        """Return a weight without values."""
        return Nf4Weight(size, self._workspace, self.dtype, self.device, self.allocate)

    def make_refresh(
        self, weights: Sequence[FrozenWeight], places: Callable[[FrozenWeight], Places]
    ) -> Callable[[], None]:
        """Return what has weights written anew: each then takes its adapters along."""
        for weight in weights:
            assert isinstance(weight, Nf4Weight)
            weight.attach(places(weight))
        self._workspace.forget()
        return self._workspace.forget
