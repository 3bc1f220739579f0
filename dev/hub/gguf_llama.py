"""Reads a llama model out of a GGUF file: weights under transformers' names, configuration, tokenizer.

The layout is that of llama.cpp's convert_hf_to_gguf.py, undone:
https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py (LlamaModel)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, TokenType, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class UnexpectedGgufError(ValueError):
    """The file is not the kind of model that this reader undoes."""


class GgufLlama:
    """One opened GGUF file of architecture `llama` with a byte-level BPE tokenizer. Raises UnexpectedGgufError."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)
        self.path = path
        for key, expected in {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}.items():
            if self.value(key) != expected:
                raise UnexpectedGgufError(f"{path}: {key} is {self.value(key)!r}, not {expected!r}")

    def value(self, key: str) -> Any:
        """The metadata value under a key. Raises UnexpectedGgufError if the file has none."""
        field = self._reader.get_field(key)
        if field is None:
            raise UnexpectedGgufError(f"{self.path} has no metadata key {key}")
        return field.contents()

    def weights(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Every tensor under its name in LlamaForCausalLM's state dict, dequantised, rows in transformers' order."""
        num_heads = {"attn_q": self.value("llama.attention.head_count")}
        num_heads["attn_k"] = self.value("llama.attention.head_count_kv")
        for tensor in self._reader.tensors:
            weight = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            part = tensor.name.split(".")[-2]
            if part in num_heads:
                weight = undo_rotary_permutation(weight, num_heads[part])
            yield transformers_name(tensor.name), weight

    def config(self) -> dict[str, Any]:
        """config.json of LlamaForCausalLM, but for `torch_dtype`, which is the choice of whoever writes the weights."""
        tied = not any(tensor.name == "output.weight" for tensor in self._reader.tensors)
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": self.value("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.value("tokenizer.ggml.eos_token_id"),
            "head_dim": self.value("llama.rope.dimension_count"),
            "hidden_act": "silu",
            "hidden_size": self.value("llama.embedding_length"),
            "initializer_range": self.value("llama.embedding_length") ** -0.5,
            "intermediate_size": self.value("llama.feed_forward_length"),
            "max_position_embeddings": self.value("llama.context_length"),
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.value("llama.attention.head_count"),
            "num_hidden_layers": self.value("llama.block_count"),
            "num_key_value_heads": self.value("llama.attention.head_count_kv"),
            "pad_token_id": self.value("tokenizer.ggml.padding_token_id"),
            # GGUF keeps 1e-05 as a float32; seven digits bring the written number back.
            "rms_norm_eps": float(f"{self.value('llama.attention.layer_norm_rms_epsilon'):.7g}"),
            "rope_scaling": None,
            "rope_theta": self.value("llama.rope.freq_base"),
            "tie_word_embeddings": tied,
            "use_cache": True,
            "vocab_size": self.value("llama.vocab_size"),
        }

    def tokenizer(self) -> Tokenizer:
        """The byte-level BPE with its special tokens; digits are split one by one before the merges."""
        if self.value("tokenizer.ggml.pre") != "smollm":
            raise UnexpectedGgufError(f"{self.path}: no pre-tokenizer known for {self.value('tokenizer.ggml.pre')!r}")
        tokens: list[str] = self.value("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ", 1)) for merge in self.value("tokenizer.ggml.merges")]
        vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        tokenizer.pre_tokenizer = digit_splitting_byte_level()
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in self.special_tokens()])
        return tokenizer

    def special_tokens(self) -> list[str]:
        """The control tokens, in the order of their ids."""
        types = self.value("tokenizer.ggml.token_type")
        tokens = self.value("tokenizer.ggml.tokens")
        return [token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.CONTROL]


def digit_splitting_byte_level() -> pre_tokenizers.PreTokenizer:
    """SmolLM's pre-tokenizer: every digit a piece of its own, then GPT-2's words over bytes."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def transformers_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`. Raises UnexpectedGgufError."""
    match gguf_name.split("."):
        case ["blk", layer, part, "weight"] if part in _LAYER_TENSORS:
            return f"model.layers.{layer}.{_LAYER_TENSORS[part]}.weight"
        case [part, "weight"] if part in _OTHER_TENSORS:
            return f"{_OTHER_TENSORS[part]}.weight"
    raise UnexpectedGgufError(f"no place in LlamaForCausalLM is known for the tensor {gguf_name!r}")


def undo_rotary_permutation(weight: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Put the rows of a q or k projection back into transformers' order.

    llama.cpp rotates neighbouring rows (0,1), (2,3), ... of a head, transformers the halves (0,d/2), (1,d/2+1), ...

    weight: [num_heads * head_dim, hidden_size], float32; the result has the same shape.
    """
    rows, columns = weight.shape
    half = rows // num_heads // 2
    return weight.reshape(num_heads, half, 2, columns).swapaxes(1, 2).reshape(rows, columns)
