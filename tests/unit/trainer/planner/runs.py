"""Models, GPUs and runs that the planner is asked about."""

from typing import Any

from benchmarks.trainer.shapes import SHAPES

from finetune_trainer.architecture import parse_config
from finetune_trainer.contract.spec import TrainerSpec
from finetune_trainer.planner.memory import GIB
from tests.unit.trainer.test_architecture import LLAMA_8B, PUBLISHED

H100_BYTES, A10_BYTES = 80 * GIB, 24 * GIB
SHAPE_8B = parse_config(LLAMA_8B)
SHAPE_1B = parse_config(SHAPES["llama-3.2-1b"])
SHAPE_70B = parse_config(PUBLISHED["Llama-3.1-70B"][0])


def spec(**groups: dict[str, Any]) -> TrainerSpec:
    """The recipe of 16 GPUs on two nodes, changed group by group."""
    base: dict[str, Any] = {
        "model": {"huggingFace": {"repository": "meta-llama/Llama-3.1-8B-Instruct"}},
        "datasets": [{"path": "rows.jsonl", "format": "hermes"}],
        "compute": {"nodes": 2, "gpusPerNode": 8},
    }
    for name, group in groups.items():
        base[name] = base.get(name, {}) | group
    return TrainerSpec.model_validate(base)
