"""Which precision and which kernels a run takes."""

from typing import Any

import pytest

from finetune_trainer.contract.spec import Kernels, Precision, Sharding
from finetune_trainer.planner.fitting import resolve_sharding
from finetune_trainer.planner.formats import resolve_kernels, resolve_precision
from finetune_trainer.planner.plan import make_plan
from tests.unit.trainer.planner.runs import A10_BYTES, H100_BYTES, SHAPE_8B, SHAPE_70B, spec


def test_precision_is_bf16_on_gpus_and_fp32_on_cpus_unless_it_was_said() -> None:
    cpu = {"device": "cpu", "gpusPerNode": None}
    assert resolve_precision(spec()) is Precision.BF16
    assert resolve_precision(spec(compute=cpu)) is Precision.FP32
    assert resolve_precision(spec(training={"precision": "fp32"})) is Precision.FP32
    assert resolve_precision(spec(compute=cpu, training={"precision": "bf16"})) is Precision.BF16


KERNELS: dict[str, tuple[dict[str, dict[str, Any]], Kernels]] = {
    "where nothing was said, bf16 on GPUs is fused": ({}, Kernels.FUSED),
    "plain when it was said": ({"training": {"kernels": "plain"}}, Kernels.PLAIN),
    "auto: bf16 on GPUs is fused": ({"training": {"kernels": "auto"}}, Kernels.FUSED),
    "auto: also where the model is spread": (
        {"training": {"kernels": "auto"}, "compute": {"sharding": "full"}},
        Kernels.FUSED,
    ),
    "auto: fp32 is plain": ({"training": {"kernels": "auto", "precision": "fp32"}}, Kernels.PLAIN),
    "auto: a CPU is plain": (
        {"compute": {"device": "cpu", "gpusPerNode": None}, "training": {"kernels": "auto"}},
        Kernels.PLAIN,
    ),
    "but fused when it was said": (
        {"compute": {"device": "cpu", "gpusPerNode": None}, "training": {"kernels": "fused"}},
        Kernels.FUSED,
    ),
}


@pytest.mark.parametrize("case", KERNELS)
def test_kernels_are_fused_where_they_can_be(case: str) -> None:
    groups, expected = KERNELS[case]
    assert resolve_kernels(spec(**groups)) is expected


def test_fused_kernels_that_cannot_be_had_are_noted() -> None:
    plan = make_plan(SHAPE_8B, spec(training={"kernels": "fused", "precision": "fp32"}), 1025, H100_BYTES)
    assert plan.kernels is Kernels.PLAIN
    assert "kernels are plain: fused ones take bf16 on a GPU, this is fp32" in plan.notes


def test_narrow_formats_take_fused_kernels_and_any_sharding() -> None:
    for precision in ("fp8", "nf4"):
        two_nodes = spec(training={"precision": precision})
        assert resolve_sharding(SHAPE_70B, two_nodes, A10_BYTES) is not Sharding.REPLICATE
        assert resolve_kernels(two_nodes) is Kernels.FUSED
        on_cpu = spec(training={"precision": precision}, compute={"device": "cpu", "gpusPerNode": None})
        assert resolve_kernels(on_cpu) is Kernels.FUSED
