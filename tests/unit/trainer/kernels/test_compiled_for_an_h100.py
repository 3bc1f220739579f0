"""What Triton makes of a kernel for an H100, which it compiles on any machine."""

import json
import os
import subprocess
import sys

import pytest

# Columns and ranks of what a model of 1,024 features and one of 8B round, adapters of rank 64 and 8 among them.
SIZES = [(1024, 192), (1024, 128), (1024, 24), (2816, 64), (4096, 192), (14336, 64)]

# A process of its own: in this one Triton interprets.
COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from finetune_trainer.kernels.on_gpu import fp8

columns, ranks = map(int, sys.argv[1:])
pointers = {"values": "*bf16", "narrow": "*bf16", "peaks": "*fp32", "rounded": "*fp8e4nv", "scales": "*fp32"}
numbers = dict.fromkeys(("stride", "narrow_stride", "width", "size"), "i32")
settings = fp8.settings_of(columns, ranks, columns + -(-3 * ranks // 128) * 128)
num_warps = settings.pop("num_warps")
names = fp8._round_rows.arg_names
source = ASTSource(
    fp8._round_rows,
    pointers | numbers | dict.fromkeys(settings, "constexpr"),
    {(names.index(name),): value for name, value in settings.items()},
    {(names.index(name),): [["tt.divisibility", 16]] for name in pointers | numbers},
)
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
print(json.dumps(compiled.asm["ptx"]))
"""


def assembly_of(columns: int, ranks: int) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(columns), str(ranks)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(("columns", "ranks"), SIZES)
def test_rounding_to_fp8_never_reads_fp8_back(columns: int, ranks: int) -> None:
    """ptxas 12.8 reads half of four numbers that it has just packed from the stack pointer."""
    assembly = assembly_of(columns, ranks)
    assert "cvt.rn.satfinite.e4m3x2.f32" in assembly
    assert "f16x2.e4m3x2" not in assembly
