"""The narrow number formats of frozen weights, as both kinds of kernels know them."""

from typing import NamedTuple

import torch
from torch import Tensor

# --- fp8 --------------------------------------------------------------------------------------------------------------

E4M3 = torch.float8_e4m3fn
# A row is divided by a scale that puts its largest number here. e4m3 holds 448, and has the same relative precision
# from there down to 2^-6: the room above is for columns that share the scale and are not known yet.
ROW_PEAK = 64.0
# Where the largest number of an adapter's columns may come to lie.
TAIL_PEAK = 224.0
# The last of an adapter's columns holds what e4m3 leaves of a number times this: a new adapter is so small that it lies
# at the end of e4m3's range, where the rest has no finer steps. What is left of TAIL_PEAK comes to 256, and fits.
LOW_FACTOR = 32.0
SMALLEST_SCALE = 1e-30  # of a row of zeros
NUM_PEAKS = 64  # a largest number is found in so many parts


class RoundedRows(NamedTuple):
    """Rows on their way to a product, [tokens, columns], in fp8 behind columns for an adapter.

    The kernel that computes such rows rounds them as well, while it has them; `plain.write_adapter_columns` does the
    rest.
    """

    numbers: Tensor  # e4m3 [tokens, start + columns]
    scales: Tensor  # fp32 [tokens]
    start: int  # the first of the rows' own columns

    def of_tokens(self, tokens: slice) -> "RoundedRows":
        """Return the rows of some tokens."""
        return self._replace(numbers=self.numbers[tokens], scales=self.scales[tokens])


class AdapterTail(NamedTuple):
    """An adapter, and its columns before those of a weight in fp8."""

    adapter: Tensor  # [rows, ranks] in the format of the products, of one stride 1
    numbers: Tensor  # e4m3 [rows, at least 3 * ranks]: hi, hi, LOW_FACTOR * lo
    scales: Tensor  # of the weight's rows, fp32 [rows]
    peaks: Tensor  # fp32 [NUM_PEAKS], see `plain.make_tail_writer`


# --- NF4 --------------------------------------------------------------------------------------------------------------

NF4_BLOCK = 64
# Appendix E of QLoRA (https://arxiv.org/abs/2305.14314).
NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
