"""The model that is scored computes what transformers and PEFT compute."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_trainer.architecture import read_shape
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inference.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapter
from finetune_trainer.inference.decoder import Decoder, load_decoder
from tests.peft_models import write_random_adapter
from tests.tiny_run import write_tiny_model
from tests.unit.trainer.test_model import MODELS, TOKENS

CPU = torch.device("cpu")


def logits(decoder: Decoder, tokens: list[int], *, adapted: bool) -> torch.Tensor:
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        return decoder.logits(decoder.hidden_states(ids, torch.arange(len(tokens))[None], adapted=adapted))


@pytest.mark.parametrize(("model_type", "settings"), MODELS.values(), ids=MODELS.keys())
def test_base_and_tuned_logits_are_those_of_transformers_and_peft(
    tmp_path: Path, model_type: str, settings: dict[str, Any]
) -> None:
    model = write_tiny_model(tmp_path / "base", model_type, **settings)
    shape = read_shape(tmp_path / "base")
    with torch.no_grad():
        base = model(torch.tensor([TOKENS])).logits
        tuned = write_random_adapter(model, tmp_path / "adapter")(torch.tensor([TOKENS])).logits
    assert (base - tuned).abs().max() > 0.1
    decoder = load_decoder(tmp_path / "base", shape, torch.float32, CPU, read_adapter(tmp_path / "adapter", shape))
    # Measured: at most 8e-6 where logits reach 5.
    torch.testing.assert_close(logits(decoder, TOKENS, adapted=False), base, atol=5e-5, rtol=0)
    torch.testing.assert_close(logits(decoder, TOKENS, adapted=True), tuned, atol=5e-5, rtol=0)


def test_sharded_weights_are_read_whole(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    whole, shards = (
        load_decoder(tmp_path / name, read_shape(tmp_path / name), torch.float32, CPU) for name in ("whole", "shards")
    )
    assert torch.equal(logits(whole, TOKENS, adapted=False), logits(shards, TOKENS, adapted=False))


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(TrainerError, match=r"has no weight model\.norm\.weight") as caught:
        load_decoder(tmp_path, read_shape(tmp_path), torch.float32, CPU)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


def _change_config(**changes: Any) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / ADAPTER_CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def _change_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        weights = load_file(directory / ADAPTER_WEIGHTS)
        change(weights)
        save_file(weights, directory / ADAPTER_WEIGHTS)

    return damage


Q_PROJ_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
DAMAGES: dict[str, tuple[Callable[[Path], None], Reason, str]] = {
    "of another base model": (
        _change_config(base_model_name_or_path="team/other"),
        Reason.MODEL_UNSUPPORTED,
        "was trained on team/other, not on team/base",
    ),
    "for larger layers": (
        _change_weights(lambda weights: weights.update({Q_PROJ_B: torch.zeros(64, 4)})),
        Reason.MODEL_UNSUPPORTED,
        r"layers\.0\.self_attn\.q_proj has A and B of \[4, 32\] and \[64, 4\].*another base model",
    ),
    "for more layers": (
        _change_weights(lambda weights: weights.update({Q_PROJ_B.replace("layers.0", "layers.7"): torch.zeros(2, 2)})),
        Reason.MODEL_UNSUPPORTED,
        r"layers\.7.* belongs to no layer of the base model",
    ),
    "with half of an update": (
        _change_weights(lambda weights: weights.__delitem__(Q_PROJ_B)),
        Reason.MODEL_UNSUPPORTED,
        r"A and B of \[4, 32\] and None",
    ),
    "of a kind that computes something else": (
        _change_config(use_dora=True),
        Reason.MODEL_UNSUPPORTED,
        "use_dora: True is not supported",
    ),
    "without a config": (
        lambda directory: (directory / ADAPTER_CONFIG).unlink(),
        Reason.MODEL_UNAVAILABLE,
        r"adapter_config\.json: cannot be read .* an adapter is a directory with",
    ),
    "with a config that is no JSON": (
        lambda directory: (directory / ADAPTER_CONFIG).write_text("{") and None,
        Reason.MODEL_UNAVAILABLE,
        r"adapter_config\.json: cannot be read",
    ),
    "cut in the middle": (
        lambda directory: (directory / ADAPTER_WEIGHTS).write_bytes(b"\0" * 50) and None,
        Reason.MODEL_UNAVAILABLE,
        r"adapter_model\.safetensors: cannot be read as an adapter",
    ),
}


@pytest.mark.parametrize(("damage", "reason", "told"), DAMAGES.values(), ids=DAMAGES.keys())
def test_an_adapter_that_does_not_fit_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], reason: Reason, told: str
) -> None:
    model = write_tiny_model(tmp_path / "base")
    write_random_adapter(model, tmp_path / "adapter")
    _change_config(base_model_name_or_path="team/base")(tmp_path / "adapter")
    damage(tmp_path / "adapter")
    with pytest.raises(TrainerError, match=told) as caught:
        read_adapter(tmp_path / "adapter", read_shape(tmp_path / "base"), "team/base")
    assert caught.value.reason is reason
