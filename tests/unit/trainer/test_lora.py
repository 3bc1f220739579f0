import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torchtune.models.convert_weights import tune_to_peft_adapter_weights

from finetune_trainer.architecture import ModelShape, read_shape
from finetune_trainer.checkpoint.write import write_adapter
from finetune_trainer.contract.spec import Lora, LoraTarget
from finetune_trainer.lora import (
    LoraLinear,
    adapter_parameters,
    add_adapters,
    from_peft,
    initialise_adapters,
    peft_config,
    to_peft,
)
from finetune_trainer.model import CausalDecoder, build_model, has_interleaved_rotary, read_weights
from finetune_trainer.sharding import fill_model
from tests.tiny_run import all_trained, write_tiny_model

CPU = torch.device("cpu")
TOKENS = [5, 17, 99, 3, 64, 64, 127, 0, 31, 8, 77, 100]
ALL_LINEARS = Lora(rank=4, alpha=8, dropout=0.1)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "mistral with wide heads": ("mistral", {"head_dim": 16, "sliding_window": None}),
}


def with_adapter(directory: Path, lora: Lora, seed: int = 0) -> tuple[CausalDecoder, ModelShape]:
    shape = read_shape(directory)
    model = build_model(shape, torch.float32, 64, checkpoint_activations=False)
    add_adapters(model, lora)
    fill_model(model, read_weights(directory, shape), CPU)
    model.fill_rotary_cache(CPU)
    initialise_adapters(model, seed)
    return model, shape


def randomise(model: CausalDecoder) -> None:
    """An adapter as training would leave it: nothing is zero."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.copy_(torch.randn_like(parameter) * 0.2)


def test_a_new_adapter_leaves_the_base_models_logits_as_they_are(tmp_path: Path) -> None:
    reference = write_tiny_model(tmp_path)
    model, _ = with_adapter(tmp_path, ALL_LINEARS)
    with torch.no_grad():
        expected = reference(torch.tensor([TOKENS])).logits
        torch.testing.assert_close(model.eval().logits(all_trained(TOKENS)), expected, atol=5e-5, rtol=0)


@pytest.fixture
def peft_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """NB: this PEFT raises where it finds a torchao older than 0.16; torchtune 0.6.1 imports with none newer than 0.15.

    Its torchao half is for quantised base models, which have no part in this.
    """
    monkeypatch.setattr("peft.tuners.lora.torchao.is_torchao_available", lambda: False)


@pytest.mark.usefixtures("peft_without_torchao")
@pytest.mark.parametrize(("model_type", "settings"), FAMILIES.values(), ids=FAMILIES.keys())
def test_peft_loads_the_adapter_onto_transformers_with_the_same_logits(
    tmp_path: Path, model_type: str, settings: dict[str, Any]
) -> None:
    base = write_tiny_model(tmp_path / "base", model_type, **settings)
    model, shape = with_adapter(tmp_path / "base", ALL_LINEARS)
    randomise(model)
    weights = to_peft(dict(adapter_parameters(model)), shape, has_interleaved_rotary(shape.family))
    write_adapter(tmp_path / "adapter", weights, peft_config(ALL_LINEARS, "owner/base", "0123abc"))

    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        before = base(tokens).logits
        expected = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(tokens).logits
        ours = model.eval().logits(all_trained(TOKENS))
    assert (expected - before).abs().max() > 1.0  # the adapter does something
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("model_type", "settings"), FAMILIES.values(), ids=FAMILIES.keys())
def test_the_adapters_files_are_what_vllms_loader_reads(
    tmp_path: Path, model_type: str, settings: dict[str, Any]
) -> None:
    """The checks of vLLM's loader, as its sources have them (vllm/lora/peft_helper.py, utils.py, lora_model.py)."""
    base = write_tiny_model(tmp_path / "base", model_type, **settings)
    model, shape = with_adapter(tmp_path / "base", ALL_LINEARS)
    weights = to_peft(dict(adapter_parameters(model)), shape, has_interleaved_rotary(shape.family))
    write_adapter(tmp_path / "adapter", weights, peft_config(ALL_LINEARS, "owner/base", "0123abc"))

    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    rank, alpha = config["r"], config["lora_alpha"]
    assert (rank, alpha) == (ALL_LINEARS.rank, ALL_LINEARS.alpha)
    assert (config["bias"], config["modules_to_save"], config["use_dora"], config["use_rslora"]) == (
        "none",
        None,
        False,
        False,
    )
    linears = {name: module for name, module in base.named_modules() if name.endswith("_proj")}
    assert set(config["target_modules"]) == {name.rpartition(".")[2] for name in linears}
    with safe_open(tmp_path / "adapter/adapter_model.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    expected = {}
    for name, linear in linears.items():
        expected[f"base_model.model.{name}.lora_A.weight"] = (rank, linear.in_features)
        expected[f"base_model.model.{name}.lora_B.weight"] = (linear.out_features, rank)
    assert shapes == expected


def test_adapter_weights_are_those_that_torchtune_would_write(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    model, shape = with_adapter(tmp_path, ALL_LINEARS)
    randomise(model)
    adapter = adapter_parameters(model)
    named_as_in_torchtune = {f"{name}.weight": value.detach() for name, value in adapter.items()}
    expected = tune_to_peft_adapter_weights(
        named_as_in_torchtune, num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads, dim=shape.hidden_size
    )
    ours = to_peft(dict(adapter), shape, interleaved_rotary=True)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize("interleaved_rotary", [True, False])
def test_an_adapter_that_was_written_reads_back_as_it_was(tmp_path: Path, interleaved_rotary: bool) -> None:
    write_tiny_model(tmp_path)
    model, shape = with_adapter(tmp_path, ALL_LINEARS)
    randomise(model)
    adapter = adapter_parameters(model)
    written = to_peft(dict(adapter), shape, interleaved_rotary)
    read = from_peft(written, adapter, shape, interleaved_rotary)
    assert all(torch.equal(read[name], value) for name, value in adapter.items())


def test_only_the_linears_asked_for_get_an_adapter(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    lora = Lora(rank=2, alpha=4, dropout=0, targets=(LoraTarget.Q_PROJ, LoraTarget.DOWN_PROJ))
    model, shape = with_adapter(tmp_path, lora)
    adapter = adapter_parameters(model)
    assert list(adapter) == [
        f"layers.{layer}.{linear}.{matrix}"
        for layer in (0, 1)
        for linear in ("attn.q_proj", "mlp.w2")
        for matrix in ("lora_a", "lora_b")
    ]
    assert sum(parameter.numel() for parameter in adapter.values()) == shape.num_adapter_parameters(lora)


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    first, second, other = (
        adapter_parameters(with_adapter(tmp_path, ALL_LINEARS, seed)[0])["layers.1.mlp.w1.lora_a"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_adapter_stays_in_fp32_beside_bf16_weights() -> None:
    frozen = torch.nn.Linear(16, 8, bias=False, dtype=torch.bfloat16)
    layer = LoraLinear(frozen, rank=2, alpha=4, dropout=0.0)
    assert {layer.lora_a.dtype, layer.lora_b.dtype} == {torch.float32}
    assert layer(torch.ones(1, 16, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_dropout_falls_on_the_adapters_input_while_training_only() -> None:
    layer = LoraLinear(torch.nn.Linear(64, 8, bias=False), rank=2, alpha=4, dropout=0.5)
    torch.nn.init.normal_(layer.lora_a)
    torch.nn.init.normal_(layer.lora_b)
    x = torch.ones(1, 64)
    assert not torch.equal(layer.train()(x), layer(x))
    expected = x @ layer.weight.T + 2.0 * (x @ layer.lora_a.T @ layer.lora_b.T)
    torch.testing.assert_close(layer.eval()(x), expected)


def test_the_config_names_base_model_and_revision() -> None:
    config = json.loads(json.dumps(peft_config(ALL_LINEARS, "owner/base", "0123abc")))
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/base", "0123abc")
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)
