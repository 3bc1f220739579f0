"""HuggingFaceTB/SmolLM2-135M-Instruct in the Hub's layout, made from a GGUF file of it.

The file has Q4_1 linears and a Q8_0 embedding. What is served is therefore the model as it was quantised there, in
bfloat16, and not bit for bit the original.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from dev.hub.gguf_llama import GgufLlama
from dev.hub.gguf_package import PACKAGE
from dev.hub.names import SMOLLM2

README = f"""---
license: apache-2.0
language: [en]
pipeline_tag: text-generation
---
# SmolLM2-135M-Instruct, restored from a quantised copy

Made by finetune-operator's `dev.hub` out of `{PACKAGE}` (GGUF, Q4_1 and Q8_0), for machines that cannot reach the
Hugging Face Hub. The layout is the original's; the weights carry the rounding of that quantisation.
Original: {SMOLLM2}, Apache-2.0.
"""


def write_model(gguf_path: Path, folder: Path) -> None:
    """Write the model of a GGUF file as the folder of files that `from_pretrained` reads. Weights in bfloat16."""
    model = GgufLlama(gguf_path)
    weights = {name: torch.tensor(weight, dtype=torch.bfloat16) for name, weight in model.weights()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", model.config() | {"torch_dtype": "bfloat16"})
    ids = {f"{role}_token_id": model.config()[f"{role}_token_id"] for role in ("bos", "eos", "pad")}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    write_tokenizer(model, folder)
    (folder / "README.md").write_text(README)


def write_tokenizer(model: GgufLlama, folder: Path) -> None:
    """Write tokenizer.json and the files that tell transformers what its special tokens are for."""
    model.tokenizer().save(str(folder / "tokenizer.json"))
    tokens = model.value("tokenizer.ggml.tokens")
    special = {
        "bos_token": tokens[model.value("tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[model.value("tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[model.value("tokenizer.ggml.padding_token_id")],
        "unk_token": tokens[model.value("tokenizer.ggml.unknown_token_id")],
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        special
        | {
            "add_prefix_space": False,
            "chat_template": model.value("tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.value("llama.context_length"),
            # NB: the original says GPT2Tokenizer. transformers 5 then rebuilds the pre-tokenizer from that class and
            # loses the splitting of digits; this class takes tokenizer.json as it is.
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
