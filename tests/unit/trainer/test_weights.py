"""Weight files are checked by their headers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from finetune_trainer.architecture import read_shape
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.weights import check_weights, expected_weights
from tests.chat_models import write_chat_model


def change_weights(directory: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:  # type: ignore[type-arg]
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


def refusal(directory: Path) -> TrainerError:
    with pytest.raises(TrainerError) as error:
        check_weights(directory, read_shape(directory))
    return error.value


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_expected_weights_are_those_that_transformers_writes(model_type: str, tied: bool, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = AutoConfig.for_model(model_type, **sizes, **heads, tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    written = {name: weight.shape for name, weight in load_file(tmp_path / "model.safetensors").items()}
    assert expected_weights(read_shape(tmp_path)) == written
    check_weights(tmp_path, read_shape(tmp_path))


def test_weights_may_be_spread_over_several_files(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for number, name in enumerate(weights, start=1):
        save_file({name: weights[name]}, tmp_path / f"model-{number:05d}-of-{len(weights):05d}.safetensors")
    check_weights(tmp_path, read_shape(tmp_path))
    (tmp_path / "model-00003-of-00020.safetensors").unlink()
    assert "is missing" in refusal(tmp_path).message


def test_weights_of_another_model_are_refused_and_counted(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    error = refusal(tmp_path)
    assert error.reason is Reason.MODEL_UNSUPPORTED
    assert "model.embed_tokens.weight is [512, 32], expected [512, 64]" in error.message
    assert "more" in error.message


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(tmp_path, lambda weights: weights.update({name: weights[name].astype(np.int8)}))
    assert f"{name} is of type I8" in refusal(tmp_path).message


def test_a_file_that_was_copied_by_half_is_unavailable(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    error = refusal(tmp_path)
    assert error.reason is Reason.MODEL_UNAVAILABLE
    assert "copy it again" in error.message


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, header(b"{]"), header(b"[]"), header(b'{"a": {}}')])
def test_a_file_that_is_no_safetensors_is_unavailable(content: bytes, tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    error = refusal(tmp_path)
    assert error.reason is Reason.MODEL_UNAVAILABLE
    assert "safetensors" in error.message


def test_a_directory_without_weights_is_unavailable(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "consolidated.safetensors")
    assert refusal(tmp_path).reason is Reason.MODEL_UNAVAILABLE


ROTARY_TABLE = "model.layers.1.self_attn.rotary_emb.inv_freq"


@pytest.mark.parametrize("name", [ROTARY_TABLE, "lm_head.weight"])
def test_tensors_that_no_reader_of_the_checkpoint_needs_are_passed_over(name: str, tmp_path: Path) -> None:
    write_chat_model(tmp_path, tie_word_embeddings=True)
    change_weights(tmp_path, lambda weights: weights.update({name: np.zeros(4, np.float32)}))
    check_weights(tmp_path, read_shape(tmp_path))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_norm.weight", "model.layers.2.mlp.up_proj.weight"])
def test_a_weight_that_the_model_does_not_have_is_refused(name: str, tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    change_weights(tmp_path, lambda weights: weights.update({name: np.zeros(8, np.float32)}))
    error = refusal(tmp_path)
    assert error.reason is Reason.MODEL_UNSUPPORTED
    assert f"{name} belongs to no such model" in error.message


def test_beside_a_whole_file_shards_are_not_read(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"of another time")
    check_weights(tmp_path, read_shape(tmp_path))


def test_shards_of_two_sets_in_one_directory_are_refused(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(content)
    assert "is in several files" in refusal(tmp_path).message
