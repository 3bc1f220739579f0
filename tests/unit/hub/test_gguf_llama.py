import numpy as np
import pytest

from dev.hub.gguf_llama import (
    UnexpectedGgufError,
    digit_splitting_byte_level,
    transformers_name,
    undo_rotary_permutation,
)


def test_rows_of_a_head_go_back_from_pairs_to_halves() -> None:
    # One head of four rows, two heads side by side. llama.cpp keeps row i beside its partner i + 2.
    as_in_llama_cpp = np.array([[0], [2], [1], [3], [10], [12], [11], [13]], dtype=np.float32)
    restored = undo_rotary_permutation(as_in_llama_cpp, num_heads=2)
    assert restored[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_a_head_of_two_rows_has_nothing_to_undo() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert undo_rotary_permutation(weight, num_heads=1).tolist() == weight.tolist()


@pytest.mark.parametrize(
    ("gguf_name", "expected"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("blk.29.ffn_down.weight", "model.layers.29.mlp.down_proj.weight"),
        ("blk.7.ffn_norm.weight", "model.layers.7.post_attention_layernorm.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ],
)
def test_a_tensor_gets_the_name_that_transformers_looks_for(gguf_name: str, expected: str) -> None:
    assert transformers_name(gguf_name) == expected


@pytest.mark.parametrize("gguf_name", ["blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "rope_freqs.weight"])
def test_a_tensor_without_a_place_is_refused_and_not_dropped(gguf_name: str) -> None:
    with pytest.raises(UnexpectedGgufError, match=gguf_name):
        transformers_name(gguf_name)


def test_digits_are_split_one_by_one_and_spaces_before_them_stay_together() -> None:
    pieces = [piece for piece, _ in digit_splitting_byte_level().pre_tokenize_str("pay  120 now")]
    assert pieces == ["pay", "ĠĠ", "1", "2", "0", "Ġnow"]
