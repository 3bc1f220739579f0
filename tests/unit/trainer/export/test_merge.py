"""The merged model is base and adapter, for everybody who reads the Hugging Face layout."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_trainer.architecture import read_shape
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.export.merge import Merged, merge
from finetune_trainer.inference.adapter import read_adapter
from tests.chat_models import CHATML_WITH_TOOLS, VOCABULARY_SIZE, write_tokenizer
from tests.peft_models import write_random_adapter
from tests.tiny_run import write_tiny_model
from tests.unit.trainer.test_model import MODELS, TOKENS


def merged_of(
    root: Path, model_type: str = "llama", max_file_bytes: int = 10**9, **settings: Any
) -> tuple[Any, Merged]:
    """Write base, adapter and merged model; return the tuned model as PEFT has it, and what was merged."""
    model = write_tiny_model(root / "base", model_type, **settings)
    tuned = write_random_adapter(model, root / "adapter")
    shape = read_shape(root / "base")
    made = merge(root / "base", shape, read_adapter(root / "adapter", shape), root / "merged", max_file_bytes)
    return tuned, made


@pytest.mark.parametrize(("model_type", "settings"), MODELS.values(), ids=MODELS.keys())
def test_transformers_loads_it_and_computes_what_peft_computes(
    tmp_path: Path, model_type: str, settings: dict[str, Any]
) -> None:
    tuned, _ = merged_of(tmp_path, model_type, **settings)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        expected, found = tuned(torch.tensor([TOKENS])).logits, merged(torch.tensor([TOKENS])).logits
    # Measured: at most 2e-5 where logits reach 5; the adapter is added in another order.
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_large_model_is_written_in_several_files_which_transformers_finds(tmp_path: Path) -> None:
    tuned, made = merged_of(tmp_path, max_file_bytes=30_000)
    files = sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == made.num_bytes
    assert all((tmp_path / "merged" / name).stat().st_size < 40_000 for name in files)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        expected, found = tuned(torch.tensor([TOKENS])).logits, merged(torch.tensor([TOKENS])).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_it_has_the_number_format_of_its_base_rounded_once(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "base")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tuned = write_random_adapter(model.float(), tmp_path / "adapter")
    shape = read_shape(tmp_path / "base")
    merge(tmp_path / "base", shape, read_adapter(tmp_path / "adapter", shape), tmp_path / "merged")
    weights = load_file(tmp_path / "merged/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    expected = tuned.merge_and_unload().state_dict()
    for name, weight in weights.items():
        # Measured: equal but for a few values on the edge of two bf16 numbers.
        torch.testing.assert_close(weight, expected[name].to(torch.bfloat16), rtol=1e-2, atol=1e-3)


def test_tokenizer_template_and_generation_config_come_with_it(tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = write_tiny_model(base, vocab_size=VOCABULARY_SIZE)
    write_tokenizer(base, CHATML_WITH_TOOLS)
    (base / "LICENSE.txt").write_text("terms")
    (base / "training_args.bin").write_text("not part of a model")
    write_random_adapter(model, tmp_path / "adapter")
    shape = read_shape(base)
    made = merge(base, shape, read_adapter(tmp_path / "adapter", shape), tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "LICENSE.txt", "tokenizer.json", "tokenizer_config.json"),
        *("model.safetensors", "manifest.json"),
    }
    question = [{"role": "user", "content": "Hello"}]
    texts = [
        AutoTokenizer.from_pretrained(path).apply_chat_template(question, tokenize=False)
        for path in (base, tmp_path / "merged")
    ]
    assert texts[0] == texts[1]
    assert made.digest.startswith("sha256:")
    assert set(json.loads((tmp_path / "merged/manifest.json").read_text())["sha256"]) == names - {"manifest.json"}


def test_nothing_is_left_of_a_merge_that_fails(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "base")
    write_random_adapter(model, tmp_path / "adapter")
    shape = read_shape(tmp_path / "base")
    adapter = read_adapter(tmp_path / "adapter", shape)
    (tmp_path / "base/model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(TrainerError, match=r"model\.safetensors: cannot be read") as caught:
        merge(tmp_path / "base", shape, adapter, tmp_path / "merged")
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
