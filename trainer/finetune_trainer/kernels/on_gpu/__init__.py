"""The kernels of a fused step in Triton; `plain` tells what each computes.

Each is bound by memory: it reads every input once and writes every output once. Arithmetic is in fp32.
"""

from finetune_trainer.kernels.on_gpu.copying import gather_rows, make_copier
from finetune_trainer.kernels.on_gpu.cross_entropy import cross_entropy
from finetune_trainer.kernels.on_gpu.dropout import add_dropped, drop
from finetune_trainer.kernels.on_gpu.fp8 import (
    make_tail_writer,
    multiply_rounded,
    round_rows,
    write_adapter_columns,
)
from finetune_trainer.kernels.on_gpu.gate import gate, gate_backward, gate_backward_with_adapters
from finetune_trainer.kernels.on_gpu.nf4 import expand_nf4
from finetune_trainer.kernels.on_gpu.normalise import add_and_normalise, normalise_backward
from finetune_trainer.kernels.on_gpu.rotary import rotate, rotate_backward

__all__ = [
    "add_and_normalise",
    "add_dropped",
    "cross_entropy",
    "drop",
    "expand_nf4",
    "gate",
    "gate_backward",
    "gate_backward_with_adapters",
    "gather_rows",
    "make_copier",
    "make_tail_writer",
    "multiply_rounded",
    "normalise_backward",
    "rotate",
    "rotate_backward",
    "round_rows",
    "write_adapter_columns",
]
