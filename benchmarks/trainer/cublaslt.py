"""Matrix products by an algorithm of one's own choice: cuBLASLt, which PyTorch brings along, called directly.

PyTorch takes what cuBLAS thinks fastest for a shape. Here one can ask for all that it would think of, for what each is
made of, and for a product by any of them. Only bf16 factors and results with sums in fp32.
"""

import ctypes
from collections.abc import Iterator
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p, sizeof
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

WORKSPACE_BYTES = 64 << 20

# Names and values as in cublasLt.h of CUDA 13.
BF16, FP32, SUMS_IN_FP32 = 14, 0, 68
TRANSPOSE_LEFT, TRANSPOSE_RIGHT = 3, 4
MOST_WORKSPACE = 1
CONFIGURATION = {
    "id": (0, c_int),
    "tile": (1, c_uint32),
    "split_k": (2, c_uint32),
    "reduction": (3, c_uint32),
    "swizzle": (4, c_uint32),
    "option": (5, c_uint32),
    "stages": (6, c_uint32),
    "inner_shape": (7, ctypes.c_uint16),
    "cluster": (8, ctypes.c_uint16),
}
# cublasLtClusterShape_t: 1x1, 2x1, 4x1, 1x2, 2x2, 1x4. That of the algorithm itself is tried as well.
CLUSTERS = (2, 3, 4, 5, 6, 8)


class CublasLtError(RuntimeError):
    """A function of cuBLASLt refused."""


class Algorithm(ctypes.Structure):
    """cublasLtMatmulAlgo_t: opaque, may be copied."""

    _fields_ = [("data", c_uint64 * 8)]


class Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", Algorithm),
        ("workspace_bytes", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    ]


@cache
def library() -> Any:
    """Return the library that PyTorch has loaded."""
    assert torch.version.cuda is not None
    return ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.partition('.')[0]}")


def call(name: str, *arguments: Any) -> None:
    """Call a function.

    Raises:
        CublasLtError: it says that it cannot.
    """
    status = getattr(library(), name)(*arguments)
    if status:
        raise CublasLtError(f"{name} returned cublasStatus_t {status}")


@cache
def handle() -> c_void_p:
    made = c_void_p()
    call("cublasLtCreate", byref(made))
    return made


@cache
def workspace() -> Tensor:
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")


@dataclass(frozen=True)
class Operand:
    """A matrix as cuBLASLt sees it, columns first: `rows` numbers lie side by side, columns are `stride` apart."""

    rows: int
    columns: int
    stride: int
    is_transposed: bool

    @classmethod
    def of(cls, matrix: Tensor) -> "Operand":
        """Return the transpose of a tensor, whose rows or columns are numbers side by side."""
        outer, inner = matrix.shape
        if matrix.stride(1) == 1:
            return cls(inner, outer, matrix.stride(0), False)
        assert matrix.stride(0) == 1
        return cls(outer, inner, matrix.stride(1), True)

    def layout(self) -> c_void_p:
        made = c_void_p()
        call(
            "cublasLtMatrixLayoutCreate",
            byref(made),
            c_int(BF16),
            c_uint64(self.rows),
            c_uint64(self.columns),
            c_int64(self.stride),
        )
        return made


@dataclass
class Product:
    """left @ right for all tensors laid out like those given: [m, k], [k, n] to [m, n], each with a stride of 1."""

    left: Operand
    right: Operand
    result: Operand
    _description: c_void_p = field(default_factory=c_void_p)

    def __post_init__(self) -> None:
        call("cublasLtMatmulDescCreate", byref(self._description), c_int(SUMS_IN_FP32), c_int(FP32))
        # All is transposed, so that rows become columns: what is right here is the left factor there.
        for attribute, operand in ((TRANSPOSE_LEFT, self.right), (TRANSPOSE_RIGHT, self.left)):
            value = c_int(operand.is_transposed)
            call(
                "cublasLtMatmulDescSetAttribute",
                self._description,
                c_int(attribute),
                byref(value),
                c_size_t(sizeof(value)),
            )
        self._layouts = [operand.layout() for operand in (self.right, self.left, self.result)]
        self._one, self._zero = c_float(1.0), c_float(0.0)

    @classmethod
    def of(cls, left: Tensor, right: Tensor, result: Tensor) -> "Product":
        """Return the product of tensors, and of all that are laid out like them."""
        return cls(Operand.of(left), Operand.of(right), Operand.of(result))

    def found(self, most: int) -> list[Found]:
        """Return what cuBLASLt would take, what it thinks best first."""
        preference, count = c_void_p(), c_int()
        call("cublasLtMatmulPreferenceCreate", byref(preference))
        size = c_uint64(WORKSPACE_BYTES)
        call(
            "cublasLtMatmulPreferenceSetAttribute",
            preference,
            c_int(MOST_WORKSPACE),
            byref(size),
            c_size_t(sizeof(size)),
        )
        found = (Found * most)()
        call("cublasLtMatmulAlgoGetHeuristic", *self._asked_for(), preference, c_int(most), found, byref(count))
        call("cublasLtMatmulPreferenceDestroy", preference)
        return [each for each in found[: count.value] if each.status == 0]

    def variants(self, algorithm: Algorithm) -> Iterator[Algorithm]:
        """Yield an algorithm with other clusters and another order of its blocks, as far as that can be."""
        for cluster, swizzle in product(CLUSTERS, (0, 1)):
            changed = Algorithm.from_buffer_copy(algorithm)
            try:
                configure(changed, "cluster", cluster)
                configure(changed, "swizzle", swizzle)
                self.check(changed)
            except CublasLtError:
                continue
            yield changed

    def check(self, algorithm: Algorithm) -> Found:
        """Return what an algorithm needs.

        Raises:
            CublasLtError: it cannot compute this product, or not in the workspace.
        """
        found = Found()
        call("cublasLtMatmulAlgoCheck", *self._asked_for(), byref(algorithm), byref(found))
        if found.workspace_bytes > WORKSPACE_BYTES:
            raise CublasLtError(f"{found.workspace_bytes} bytes of workspace are needed")
        return found

    def _asked_for(self) -> tuple[c_void_p, ...]:
        """Return how the product is named to functions that ask about it; the result is what it is added to as well."""
        right, left, result = self._layouts
        return handle(), self._description, right, left, result, result

    def compute(self, left: Tensor, right: Tensor, result: Tensor, algorithm: Algorithm) -> Tensor:
        """Write the product by an algorithm, and return it."""
        layout_right, layout_left, layout_result = self._layouts
        call(
            "cublasLtMatmul",
            handle(),
            self._description,
            byref(self._one),
            c_void_p(right.data_ptr()),
            layout_right,
            c_void_p(left.data_ptr()),
            layout_left,
            byref(self._zero),
            c_void_p(result.data_ptr()),
            layout_result,
            c_void_p(result.data_ptr()),
            layout_result,
            byref(algorithm),
            c_void_p(workspace().data_ptr()),
            c_size_t(WORKSPACE_BYTES),
            c_void_p(torch.cuda.current_stream().cuda_stream),
        )
        return result


def configure(algorithm: Algorithm, name: str, value: int) -> None:
    """Change what an algorithm is made of.

    Raises:
        CublasLtError: it does not take that.
    """
    number, kind = CONFIGURATION[name]
    held = kind(value)
    call("cublasLtMatmulAlgoConfigSetAttribute", byref(algorithm), c_int(number), byref(held), c_size_t(sizeof(held)))


def configuration(algorithm: Algorithm) -> dict[str, int]:
    """Return what an algorithm is made of, as far as it tells."""
    told = {}
    for name, (number, kind) in CONFIGURATION.items():
        held, written = kind(), c_size_t()
        try:
            call(
                "cublasLtMatmulAlgoConfigGetAttribute",
                byref(algorithm),
                c_int(number),
                byref(held),
                c_size_t(sizeof(held)),
                byref(written),
            )
        except CublasLtError:
            continue
        told[name] = int(held.value)
    return told
