"""What GPUs can do, by the names that NVIDIA's device plugin writes on nodes, and how much of it a training step gets.

Peaks are dense bf16, from NVIDIA's data sheets (https://www.nvidia.com/en-us/data-center/, without sparsity).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_MIB = 1 << 20

# Written on nodes by https://github.com/NVIDIA/gpu-feature-discovery.
PRODUCT_LABEL = "nvidia.com/gpu.product"
MEMORY_LABEL = "nvidia.com/gpu.memory"


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU."""

    name: str
    memory_bytes: int | None
    peak_flops: float | None
    """Operations a second in bf16; None where we do not know this kind."""


# Name, memory in MiB, peak in TFLOP/s. The first whose parts are all in a label names it.
_KNOWN = (
    ("B200", 183359, 2250),
    ("H200", 143771, 989),
    ("H100-PCIe", 81559, 756),
    ("H100", 81559, 989),
    ("A100-40GB", 40960, 312),
    ("A100", 81920, 312),
    ("L40S", 46068, 362),
    ("L40", 46068, 181),
    ("L4", 23034, 121),
    ("A10G", 23028, 70),
    ("A10", 23028, 125),
    ("RTX-4090", 24564, 165),
)
NAMES = tuple(name for name, _, _ in _KNOWN)

# The share of its peak that a step of an 8B model with rank 64 reached on an H100 (docs/LOG.md: 7,256 tokens/s plain
# with activations computed again, 16,325 fused without), by the operations of `flops_per_token`.
MEASURED_SHARE_PLAIN = 0.36
MEASURED_SHARE_FUSED = 0.55


def gpu_named(name: str) -> Gpu | None:
    """Return the GPU that a person or a label names, or None when it is not known."""
    wanted = _parts(name)
    for known, mib, tera_flops in _KNOWN:
        if set(_parts(known)) <= set(wanted):
            return Gpu(known, mib * _MIB, tera_flops * 1e12)
    return None


def gpu_of_node(labels: Mapping[str, str]) -> Gpu | None:
    """Return the GPU of a node by its labels, or None when nothing is written on it."""
    product = labels.get(PRODUCT_LABEL)
    if product is None:
        return None
    known = gpu_named(product)
    written = labels.get(MEMORY_LABEL, "")
    memory_bytes = int(written) * _MIB if written.isdecimal() else known.memory_bytes if known else None
    return Gpu(product, memory_bytes, known.peak_flops if known else None)


def flops_per_token(parameters: int, adapter_parameters: int, *, recomputes: bool) -> float:
    """Return the operations of a training step for one token: forward and backward through the frozen base, for whose
    weights no gradient is computed, forward again where activations are computed again, and the adapter three times.
    """
    return (6 if recomputes else 4) * parameters + 6 * adapter_parameters


def _parts(name: str) -> list[str]:
    return re.split(r"[^A-Z0-9]+", name.upper())
