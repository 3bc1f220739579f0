"""A decoder of the supported families, on the weights as they lie in the Hugging Face layout.

Every linear layer keeps its frozen weight and, beside it, the adapter's update: base and tuned model are one load, and
each pass says which of the two it is. The order of operations and of roundings is that of transformers
(https://github.com/huggingface/transformers/blob/main/src/transformers/models/llama/modeling_llama.py).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional

from finetune_trainer.architecture import ModelShape, RopeScaling
from finetune_trainer.contract.spec import LoraTarget
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inference.adapter import Adapter, LowRank, owner
from finetune_trainer.inference.cache import KeyValueCache
from finetune_trainer.weights import expected_weights, find_weight_files

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Linear:
    """A frozen linear layer, [outputs, inputs], and the adapter's update where it has one."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    update: LowRank | None

    def __call__(self, x: torch.Tensor, adapted: bool) -> torch.Tensor:
        """Map [..., inputs] to [..., outputs], with or without the update."""
        output = functional.linear(x, self.weight, self.bias)
        if adapted and self.update is not None:
            low_rank = functional.linear(x, self.update.a) * self.update.scale
            output = output + functional.linear(low_rank, self.update.b)
        return output


@dataclass(frozen=True)
class Block:
    """One layer of the decoder."""

    linears: Mapping[LoraTarget, Linear]
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor


@dataclass(frozen=True)
class Step:
    """What a pass over some tokens needs to know besides them."""

    cosines: torch.Tensor  # [b, 1, s, head_dim], as the sines
    sines: torch.Tensor
    mask: torch.Tensor | None  # [b, 1, s, tokens seen]; None: every token sees those before it
    cache: KeyValueCache | None
    place: torch.Tensor | None  # of one new token in the cache, int64 [1]; None: behind those that are there
    adapted: bool


class Decoder:
    """A model that is ready to be asked."""

    def __init__(self, shape: ModelShape, weights: Tensors, adapter: Adapter | None = None) -> None:
        self.shape = shape
        self._embedding = weights["model.embed_tokens.weight"]
        self._blocks = [_block(layer, shape, weights, adapter) for layer in range(shape.num_layers)]
        self._norm = weights["model.norm.weight"]
        self._head = self._embedding if shape.tied_embeddings else weights["lm_head.weight"]
        self.device, self.dtype = self._embedding.device, self._embedding.dtype
        self._frequencies = rotary_frequencies(shape).to(self.device)

    def new_cache(self, num_rows: int, capacity: int) -> KeyValueCache:
        """Return an empty cache for some rows of at most `capacity` tokens."""
        return KeyValueCache(self.shape, num_rows, capacity, self.dtype, self.device)

    def hidden_states(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        *,
        adapted: bool,
        mask: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
        place: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the last hidden states, [b, s, hidden_size].

        Args:
            tokens: int64 [b, s].
            positions: of the tokens, int64 [b, s].
            adapted: whether the adapter takes part.
            mask: [b, 1, s, tokens in the cache and new ones], True where a token is seen, or numbers to add to its
                score; None is causal.
            cache: keys and values of earlier tokens; those of the new ones are added to it.
            place: where in the cache those of one new token are put, int64 [1]. The mask is then over its capacity, and
                the caller counts. None adds them behind the others, and counts them.
        """
        angles = positions[:, None, :, None].float() * self._frequencies
        angles = torch.cat((angles, angles), dim=-1)
        step = Step(angles.cos().to(self.dtype), angles.sin().to(self.dtype), mask, cache, place, adapted)
        hidden = functional.embedding(tokens, self._embedding)
        for layer, block in enumerate(self._blocks):
            hidden = hidden + self._attend(layer, block, self._normalise(hidden, block.attention_norm), step)
            hidden = hidden + _feed_forward(block, self._normalise(hidden, block.mlp_norm), adapted)
        if cache is not None and place is None:
            cache.advance(tokens.shape[1])
        return self._normalise(hidden, self._norm)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states [..., hidden_size], fp32 [..., vocab_size]."""
        return functional.linear(hidden, self._head).float()

    def _normalise(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.shape.norm_epsilon)
        return weight * wide.to(x.dtype)

    def _attend(self, layer: int, block: Block, x: torch.Tensor, step: Step) -> torch.Tensor:
        shape, (num_rows, num_tokens, _) = self.shape, x.shape

        def heads(target: LoraTarget, num_heads: int) -> torch.Tensor:
            projected = block.linears[target](x, step.adapted)
            return projected.view(num_rows, num_tokens, num_heads, shape.head_dim).transpose(1, 2)

        queries = _rotate(heads(LoraTarget.Q_PROJ, shape.num_heads), step)
        keys = _rotate(heads(LoraTarget.K_PROJ, shape.num_kv_heads), step)
        values = heads(LoraTarget.V_PROJ, shape.num_kv_heads)
        if step.cache is not None and step.place is not None:
            keys, values = step.cache.put(layer, keys, values, step.place)
        elif step.cache is not None:
            keys, values = step.cache.append(layer, keys, values)
        if num_tokens == 1:
            attended = _attend_once(queries, keys, values, step.mask)
        else:
            attended = _attend_all(queries, keys, values, step.mask)
        merged = attended.transpose(1, 2).reshape(num_rows, num_tokens, shape.num_heads * shape.head_dim)
        return block.linears[LoraTarget.O_PROJ](merged, step.adapted)


def load_decoder(
    directory: Path, shape: ModelShape, dtype: torch.dtype, device: torch.device, adapter: Adapter | None = None
) -> Decoder:
    """Load a model from a directory of the Hugging Face layout, one tensor at a time.

    Raises:
        TrainerError: MODEL_UNAVAILABLE when a file is missing or damaged, MODEL_UNSUPPORTED when a weight is missing.
    """
    wanted = expected_weights(shape)
    weights: Tensors = {}
    for path in find_weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                for name in set(file.keys()) & wanted.keys():
                    weights[name] = file.get_tensor(name).to(device, dtype)
        except (OSError, SafetensorError) as error:
            raise TrainerError(Reason.MODEL_UNAVAILABLE, f"{path}: cannot be read: {error}") from error
    if missing := sorted(wanted.keys() - weights.keys()):
        raise TrainerError(Reason.MODEL_UNSUPPORTED, f"{directory}: has no weight {missing[0]}")
    return Decoder(shape, weights, adapter)


def rotary_frequencies(shape: ModelShape) -> torch.Tensor:
    """Return the angle that each pair of features turns from one position to the next, fp32 [head_dim / 2]."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
    frequencies = 1.0 / (shape.rope_theta**exponents)
    return frequencies if shape.rope_scaling is None else _stretched(frequencies, shape.rope_scaling)


def _stretched(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Stretch slow rotations by the factor, leave fast ones, and go over smoothly in between (Llama 3.1)."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_positions / wavelengths
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies


def _rotate(x: torch.Tensor, step: Step) -> torch.Tensor:
    """Turn feature i together with feature i + head_dim / 2."""
    first, second = x.chunk(2, dim=-1)
    return x * step.cosines + torch.cat((-second, first), dim=-1) * step.sines


def _attend_all(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Let many tokens see those before them, or those that a mask lets them. [b, num_heads, s, head_dim]."""
    if mask is None:
        return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    # NB: with a mask and shared heads PyTorch has no kernel that does without all scores at once.
    num_sharing = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(num_sharing, dim=1), values.repeat_interleave(num_sharing, dim=1)
    return functional.scaled_dot_product_attention(queries, keys, values, mask)


def _attend_once(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Let one new token a row see all before it. [b, num_heads, 1, head_dim].

    The heads that share keys and values stand beside each other as if they were tokens, so nothing is copied for them.
    """
    num_rows, num_heads, _, head_dim = queries.shape
    grouped = queries.reshape(num_rows, keys.shape[1], num_heads // keys.shape[1], head_dim)
    attended = functional.scaled_dot_product_attention(grouped, keys, values, mask)
    return attended.reshape(num_rows, num_heads, 1, head_dim)


def _feed_forward(block: Block, x: torch.Tensor, adapted: bool) -> torch.Tensor:
    gate = functional.silu(block.linears[LoraTarget.GATE_PROJ](x, adapted))
    return block.linears[LoraTarget.DOWN_PROJ](gate * block.linears[LoraTarget.UP_PROJ](x, adapted), adapted)


def _block(layer: int, shape: ModelShape, weights: Tensors, adapter: Adapter | None) -> Block:
    prefix = f"model.layers.{layer}"
    linears = {}
    for target in shape.linears:
        name = f"{prefix}.{owner(target)}.{target}"
        weight = weights[f"{name}.weight"]
        update = adapter.updates.get(f"{name}.weight") if adapter is not None else None
        if update is not None:
            update = LowRank(update.a.to(weight), update.b.to(weight), update.scale)
        linears[target] = Linear(weight, weights.get(f"{name}.bias"), update)
    return Block(
        linears, weights[f"{prefix}.input_layernorm.weight"], weights[f"{prefix}.post_attention_layernorm.weight"]
    )
