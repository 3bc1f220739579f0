"""What Triton makes of a kernel for an H100, which it compiles on any machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton.backends.nvidia

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
start = -(-3 * ranks // 128) * 128
made = []
for kernel, settings in (
    (fp8._round_rows, fp8.settings_of(columns, ranks, start + columns)),
    (fp8._write_adapter_columns, fp8.adapter_settings_of(columns, ranks, start)),
):
    num_warps = settings.pop("num_warps")
    kinds = {"peaks": "*fp32", "rounded": "*fp8e4nv", "scales": "*fp32"} | dict.fromkeys(("values", "narrow"), "*bf16")
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: "constexpr" if name in settings else kinds.get(name, "i32") for name in names},
        {(names.index(name),): value for name, value in settings.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in names if name not in settings},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
    made.append(compiled.asm["ptx"])
print(json.dumps(made))
"""


COMPILE_ATTENTION = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from finetune_trainer.kernels.on_gpu import attention

made = {}
for name, blocks in (
    ("_forward", attention.FORWARD),
    ("_backward_of_queries", attention.OF_QUERIES),
    ("_backward_of_keys", attention.OF_KEYS),
):
    kernel = getattr(attention, name)
    constants = {"GROUP": 4, "SIZE": int(sys.argv[1]), "QUERIES": blocks.queries, "KEYS": blocks.keys}
    kinds = dict.fromkeys(("starts", "ends"), "*i32") | dict.fromkeys(("log_sums", "along"), "*fp32")
    kinds |= dict.fromkeys(("stride", "kv_stride", "gradient_stride", "num_tokens"), "i32") | {"scale": "fp32"}
    kinds |= dict.fromkeys(constants, "constexpr")
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: kinds.get(name, "*bf16") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in names if name not in (*constants, "scale")},
    )
    options = {"num_warps": blocks.num_warps, "num_stages": blocks.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    made[name] = compiled.asm["ptx"], compiled.metadata.shared
print(json.dumps(made))
"""


def compiled(program: str, *arguments: int) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(("columns", "ranks"), SIZES)
def test_rounding_to_fp8_never_reads_fp8_back(columns: int, ranks: int) -> None:
    """ptxas 12.8 reads half of four numbers that it has just packed from the stack pointer."""
    for assembly in compiled(COMPILE, columns, ranks):
        assert "cvt.rn.satfinite.e4m3x2.f32" in assembly
        assert "f16x2.e4m3x2" not in assembly


@pytest.mark.parametrize("head_dim", [64, 128])
def test_attention_multiplies_on_hoppers_tensor_cores_and_keeps_its_sums_in_registers(
    tmp_path: Path, head_dim: int
) -> None:
    ptxas = Path(triton.backends.nvidia.__file__).parent / "bin" / "ptxas"
    for name, (assembly, shared_bytes) in compiled(COMPILE_ATTENTION, head_dim).items():
        assert "wgmma.mma_async" in assembly, name
        assert shared_bytes <= 227 << 10, name  # what a program may have there
        source = tmp_path / f"{name}.ptx"
        source.write_text(assembly)
        command = [ptxas, "-v", "-arch=sm_90a", source, "-o", tmp_path / "cubin"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        assert "0 bytes spill stores, 0 bytes spill loads" in told, f"{name}: {told}"
