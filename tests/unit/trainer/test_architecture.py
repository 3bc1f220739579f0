"""Model shapes from config.json, and which models are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.architecture import Family, ModelShape, RopeScaling, parse_config, read_shape
from finetune_trainer.contract.spec import Lora, LoraTarget
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError


def config(model_type: str, sizes: tuple[int, int, int, int, int, int, int], **fields: Any) -> dict[str, Any]:
    names = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "max_position_embeddings",
    )
    return {"model_type": model_type, "hidden_act": "silu", **dict(zip(names, sizes, strict=True)), **fields}


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA_8B = config("llama", (128256, 4096, 32, 32, 8, 14336, 131072), rope_theta=500000.0, rope_scaling=LLAMA3_ROPE)

# The numbers of parameters are those that the Hub states on the models' pages (safetensors, total).
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-3.1-8B": (LLAMA_8B, 8_030_261_248),
    "Llama-3.2-1B": (
        config("llama", (128256, 2048, 16, 32, 8, 8192, 131072), head_dim=64, tie_word_embeddings=True),
        1_235_814_400,
    ),
    "Llama-3.1-70B": (config("llama", (128256, 8192, 80, 64, 8, 28672, 131072)), 70_553_706_496),
    "SmolLM2-135M": (config("llama", (49152, 576, 30, 9, 3, 1536, 8192), tie_word_embeddings=True), 134_515_008),
    "Qwen2.5-0.5B": (config("qwen2", (151936, 896, 24, 14, 2, 4864, 32768), tie_word_embeddings=True), 494_032_768),
    "Qwen2.5-7B": (config("qwen2", (152064, 3584, 28, 28, 4, 18944, 131072)), 7_615_616_512),
    "Mistral-7B-v0.3": (config("mistral", (32768, 4096, 32, 32, 8, 14336, 32768), sliding_window=None), 7_248_023_552),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_as_many_as_published(model: str) -> None:
    fields, published = PUBLISHED[model]
    assert parse_config(fields).num_parameters == published


def test_an_adapter_of_the_recipe_has_168_million_parameters_on_8b() -> None:
    assert parse_config(LLAMA_8B).num_adapter_parameters(Lora(rank=64)) == 167_772_160


def test_an_adapter_on_two_layers_has_only_theirs() -> None:
    lora = Lora(rank=8, targets=(LoraTarget.Q_PROJ, LoraTarget.V_PROJ))
    # 32 layers, A is 8 x 4096 twice, B is 4096 x 8 for q and 1024 x 8 for v.
    assert parse_config(LLAMA_8B).num_adapter_parameters(lora) == 32 * 8 * (4096 + 4096 + 4096 + 1024)


def test_the_shape_of_llama_3_1_is_read_with_its_rope_scaling() -> None:
    assert parse_config(LLAMA_8B | {"rms_norm_eps": 1e-5}) == ModelShape(
        family=Family.LLAMA,
        vocab_size=128256,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=14336,
        max_positions=131072,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
        norm_epsilon=1e-5,
        tied_embeddings=False,
        attention_bias=False,
    )


def test_configs_of_transformers_4_and_5_say_the_same() -> None:
    written_by_5 = {name: value for name, value in LLAMA_8B.items() if name not in ("rope_theta", "rope_scaling")}
    written_by_5["rope_parameters"] = {"rope_theta": 500000.0, **LLAMA3_ROPE}
    assert parse_config(written_by_5) == parse_config(LLAMA_8B)


def test_only_qwen_has_biases_on_q_k_and_v() -> None:
    biased = {model: parse_config(fields).attention_bias for model, (fields, _) in PUBLISHED.items()}
    assert [model for model, bias in biased.items() if bias] == ["Qwen2.5-0.5B", "Qwen2.5-7B"]


def test_a_sliding_window_is_the_longest_sequence_and_one_that_is_off_is_not() -> None:
    mistral, qwen = PUBLISHED["Mistral-7B-v0.3"][0], PUBLISHED["Qwen2.5-7B"][0]
    assert parse_config(mistral).max_positions == 32768
    assert parse_config(mistral | {"sliding_window": 4096}).max_positions == 4096
    assert parse_config(qwen | {"sliding_window": 32768, "use_sliding_window": False}).max_positions == 131072
    assert parse_config(qwen | {"sliding_window": 32768, "use_sliding_window": True}).max_positions == 32768


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another family": ({"model_type": "gemma3"}, "model_type 'gemma3' is not supported"),
    "a model without a type": ({"model_type": None}, "model_type None"),
    "a classifier": ({"architectures": ["LlamaForSequenceClassification"]}, "no language model head"),
    "a quantised checkpoint": ({"quantization_config": {"quant_method": "awq"}}, "(quantization_config, awq)"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "a bias on attention": ({"attention_bias": True}, "attention_bias"),
    "a bias on the MLP": ({"mlp_bias": True}, "mlp_bias"),
    "another rope type": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
    "another rope type in the old spelling": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "rope type 'linear'",
    ),
    "a rope scaling with a field missing": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "rope type llama3 lacks a number: 'low_freq_factor'",
    ),
    "half a rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "a size that is no number": ({"hidden_size": "4096"}, "hidden_size is '4096'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_would_be_computed_differently_is_refused_with_the_list_of_those_supported(case: str) -> None:
    change, reason = REFUSED[case]
    with pytest.raises(TrainerError) as error:
        parse_config(LLAMA_8B | change)
    assert error.value.reason is Reason.MODEL_UNSUPPORTED
    assert reason in error.value.message
    for family in ("Llama 3, 3.1 and 3.2", "SmolLM2", "Qwen 2.5", "Mistral"):
        assert family in error.value.message


def test_a_refusal_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(TrainerError, match=r"config\.json: model_type 'gpt2'"):
        read_shape(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"), [(None, "cannot be read"), ("{", "is not JSON"), ("[]", "not a JSON object")]
)
def test_a_directory_without_a_readable_config_is_unavailable(text: str | None, reason: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(TrainerError) as error:
        read_shape(tmp_path)
    assert error.value.reason is Reason.MODEL_UNAVAILABLE
    assert reason in error.value.message
