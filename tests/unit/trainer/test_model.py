from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_trainer.architecture import Family, read_shape
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.model import CausalDecoder, build_model, read_weights
from finetune_trainer.sharding import fill_model
from tests.tiny_run import all_trained, write_tiny_model

CPU = torch.device("cpu")
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 3": ("llama", {"rope_theta": 500000.0}),
    "llama 3.1, stretched positions": ("llama", {"rope_parameters": LLAMA_3_ROPE}),
    "llama 3.2, tied embeddings too": ("llama", {"rope_parameters": LLAMA_3_ROPE, "tie_word_embeddings": True}),
    "smollm2, tied embeddings and rope base 100000": ("llama", {"rope_theta": 1e5, "tie_word_embeddings": True}),
    "qwen 2.5, biases on q, k and v": ("qwen2", {"rope_theta": 1e6}),
    "qwen 2.5, small ones tie embeddings": ("qwen2", {"tie_word_embeddings": True}),
    "mistral, heads wider than the hidden size": ("mistral", {"head_dim": 16, "sliding_window": None}),
}
TOKENS = [5, 17, 99, 3, 64, 64, 127, 0, 31, 8, 77, 100, 2, 45, 9, 21]


def load(directory: Path, *, checkpoint_activations: bool = False) -> CausalDecoder:
    shape = read_shape(directory)
    model = build_model(shape, torch.float32, 64, checkpoint_activations)
    fill_model(model, read_weights(directory, shape), CPU)
    model.fill_rotary_cache(CPU)
    return model


@pytest.mark.parametrize(("model_type", "settings"), MODELS.values(), ids=MODELS.keys())
def test_logits_are_those_of_transformers(tmp_path: Path, model_type: str, settings: dict[str, Any]) -> None:
    reference = write_tiny_model(tmp_path, model_type, **settings)
    with torch.no_grad():
        expected = reference(torch.tensor([TOKENS])).logits
        ours = load(tmp_path).logits(all_trained(TOKENS))
    # Measured: at most 6e-6 where logits reach 5; the rest is room for other processors' rounding.
    torch.testing.assert_close(ours, expected, atol=5e-5, rtol=0)


def test_loss_is_the_sum_of_transformers_losses_over_the_trained_tokens(tmp_path: Path) -> None:
    reference = write_tiny_model(tmp_path)
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        mean = reference(tokens, labels=tokens).loss
        ours = load(tmp_path)(all_trained(TOKENS))
    assert ours.item() == pytest.approx(mean.item() * (len(TOKENS) - 1), rel=1e-5)


def test_a_packed_document_has_the_loss_it_has_alone(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    model = load(tmp_path)
    with torch.no_grad():
        alone = model(all_trained(TOKENS[:7])) + model(all_trained(TOKENS[7:]))
        packed = model(all_trained(TOKENS, 7, 9))
        run_together = model(all_trained(TOKENS))
    assert packed.item() == pytest.approx(alone.item(), rel=1e-5)
    assert abs(run_together.item() - alone.item()) > 1.0


def test_activation_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    gradients = []
    for checkpoint_activations in (False, True):
        model = load(tmp_path, checkpoint_activations=checkpoint_activations).train()
        weight = model.layers[0].attn.q_proj.weight.requires_grad_()
        model(all_trained(TOKENS, 7, 9)).backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_a_model_takes_no_memory_before_it_is_filled(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    model = build_model(read_shape(tmp_path), torch.bfloat16, 64, checkpoint_activations=False)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def _without_a_weight(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def _with_a_stranger(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)


def _with_another_shape(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"] = torch.ones(33)


WRONG_WEIGHTS = {
    "a weight is missing": (_without_a_weight, "layers.1.mlp.w3.weight"),
    "a weight is unknown": (_with_a_stranger, "q_norm"),
    "a weight has another shape": (_with_another_shape, r"norm.scale has shape \[33\].* \[32\]"),
}


@pytest.mark.parametrize(("damage", "named"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS.keys())
def test_weights_that_do_not_fit_the_config_are_refused_by_name(tmp_path: Path, damage: Any, named: str) -> None:
    write_tiny_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    damage(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(TrainerError, match=named) as caught:
        load(tmp_path)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_rotary_tables_of_old_checkpoints_are_passed_over(tmp_path: Path, model_type: str) -> None:
    write_tiny_model(tmp_path, model_type)
    with torch.no_grad():
        expected = load(tmp_path).logits(all_trained(TOKENS))
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    save_file(weights, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(load(tmp_path).logits(all_trained(TOKENS)), expected)


def test_a_damaged_weights_file_is_named(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(TrainerError, match=r"model\.safetensors: cannot be read") as caught:
        load(tmp_path)
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE


def test_every_family_is_in_the_table_of_models() -> None:
    assert {model_type for model_type, _ in MODELS.values()} == set(Family)
