"""Many small copies in one launch, and rows from wherever a table is."""

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

NUMBERS_PER_PROGRAM = 2048
MAX_PROGRAMS_PER_MATRIX = 64
FORMS = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def make_copier(pairs: Sequence[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Return what copies matrices to their places in one launch; see `plain.make_copier`."""
    rows = [
        (matrix.data_ptr(), place.data_ptr(), place.shape[0], place.shape[1], place.stride(0))
        for place, matrix in pairs
    ]
    device, dtype = pairs[0][0].device, pairs[0][0].dtype
    table = torch.tensor(rows, dtype=torch.int64, device=device)
    largest = max(place.numel() for place, _ in pairs)
    grid = (len(rows), min(triton.cdiv(largest, NUMBERS_PER_PROGRAM), MAX_PROGRAMS_PER_MATRIX))
    form = FORMS[dtype]
    kept = list(pairs)  # the table has their addresses only

    def copy() -> None:
        assert kept
        _copy[grid](table, grid[1], FORM=form, BLOCK=NUMBERS_PER_PROGRAM, num_warps=8)

    return copy


@triton.jit
def _copy(table, programs_per_matrix, FORM: tl.constexpr, BLOCK: tl.constexpr):
    row = table + tl.program_id(0) * 5
    matrix = tl.load(row).to(tl.pointer_type(tl.float32))
    place = tl.load(row + 1).to(tl.pointer_type(FORM))
    columns, stride = tl.load(row + 3), tl.load(row + 4)
    count = tl.load(row + 2) * columns
    start = tl.program_id(1).to(tl.int64) * BLOCK
    for offset in range(start, count, programs_per_matrix * BLOCK):
        index = offset + tl.arange(0, BLOCK)
        inside = index < count
        value = tl.load(matrix + index, mask=inside, other=0.0)
        tl.store(place + (index // columns) * stride + index % columns, value.to(FORM), mask=inside)


def gather_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a table, which may be in the host's pinned memory; see `plain.gather_rows`."""
    if table.is_cuda:
        return functional.embedding(rows, table)
    # The host's pinned memory has the same addresses on a GPU; as a number, the address is taken without questions.
    out = torch.empty(len(rows), table.shape[1], dtype=table.dtype, device=rows.device)
    _gather_rows[(len(rows),)](
        table.data_ptr(), rows, out, table.shape[1], FORM=FORMS[table.dtype], BLOCK=NUMBERS_PER_PROGRAM, num_warps=8
    )
    return out


@triton.jit
def _gather_rows(address, rows, out, size, FORM: tl.constexpr, BLOCK: tl.constexpr):
    # NB: Triton takes a number that fits into 32 bits for one of 32 bits, and an address may be that low.
    table = tl.cast(tl.cast(address, tl.int64), tl.pointer_type(FORM))
    source = table + tl.load(rows + tl.program_id(0)) * size
    destination = out + tl.program_id(0).to(tl.int64) * size
    for start in range(0, size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        tl.store(destination + columns, tl.load(source + columns, mask=columns < size), mask=columns < size)
