"""The base model: torchtune's modules in the shape of the checkpoint, and the checkpoint's weights.

torchtune's own builders fix what a shape leaves open (its Llama 3.2 builder always stretches the rotary positions), so
the decoder is put together here, from the shape that `architecture` read. Names follow torchtune's TransformerDecoder:
its conversion of Hugging Face weights fits.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from finetune_trainer.architecture import Family, ModelShape
from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.batch import Batch
from finetune_trainer.errors import TrainerError
from finetune_trainer.loss import summed_cross_entropy
from finetune_trainer.weight_reader import find_tensors, read_tensors
from finetune_trainer.weights import find_weight_files, is_passed_over

# NB: torchao 0.15.0 warns that its C++ kernels do not load with this torch; nothing here uses them
# (https://github.com/pytorch/ao/issues/2919).
logging.getLogger("torchao").setLevel(logging.ERROR)

from torchtune.models.convert_weights import hf_to_tune  # noqa: E402
from torchtune.models.llama3_1 import Llama3ScaledRoPE  # noqa: E402
from torchtune.models.qwen2 import Qwen2RotaryPositionalEmbeddings, qwen2_hf_to_tune  # noqa: E402
from torchtune.modules import (  # noqa: E402
    FeedForward,
    MultiHeadAttention,
    RMSNorm,
    RotaryPositionalEmbeddings,
    TransformerSelfAttentionLayer,
)
from torchtune.modules.attention_utils import create_block_causal_mask, packed_block_causal_mask  # noqa: E402

CPU = torch.device("cpu")


class CausalDecoder(nn.Module):
    """A decoder that ends in the loss of a batch.

    The loss belongs to the forward pass because FSDP gathers the weights of the head around this pass only.
    """

    def __init__(self, shape: ModelShape, max_sequence_length: int, checkpoint_activations: bool) -> None:
        super().__init__()
        layer_class = CheckpointedLayer if checkpoint_activations else TransformerSelfAttentionLayer
        self.rotary: Any = _rotary_embeddings(shape, max_sequence_length)
        self.tok_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(_layer(layer_class, shape, self.rotary) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size, eps=shape.norm_epsilon)
        self.output = None if shape.tied_embeddings else nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the summed loss of a batch's targets, fp32 scalar."""
        hidden = self.hidden_states(batch).flatten(0, 1)
        return summed_cross_entropy(hidden[batch.predicting], self.head, batch.targets)

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """Return the last hidden states, [b, s, hidden_size]."""
        mask = attention_mask(batch)
        hidden = self.tok_embeddings(batch.tokens)
        for layer in self.layers:
            hidden = layer(hidden, mask=mask, input_pos=batch.positions)
        normalised: torch.Tensor = self.norm(hidden)
        return normalised

    def logits(self, batch: Batch) -> torch.Tensor:
        """Return all logits in fp32, [b, s, vocab_size]; for models that are not sharded."""
        return nn.functional.linear(self.hidden_states(batch), self.head).float()

    @property
    def head(self) -> torch.Tensor:
        """The output projection, [vocab_size, hidden_size]; the embedding itself where they are tied."""
        head: torch.Tensor = self.tok_embeddings.weight if self.output is None else self.output.weight
        return head

    def begin_step(self) -> None:
        """Do nothing before a step: its products read the adapters' own values."""

    def fill_rotary_cache(self, device: torch.device) -> None:
        """Compute the table of rotary angles, in fp32; it is no weight, so no checkpoint fills it."""
        with device:
            self.rotary.rope_init()


class CheckpointedLayer(TransformerSelfAttentionLayer):  # type: ignore[misc]
    """A layer that keeps only its input, and computes its activations again in the backward pass."""

    def forward(self, x: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Return the layer's output, [b, s, hidden_size]."""
        output: torch.Tensor = checkpoint(super().forward, x, use_reentrant=False, **arguments)
        return output


def build_model(
    shape: ModelShape, dtype: torch.dtype, max_sequence_length: int, checkpoint_activations: bool
) -> CausalDecoder:
    """Build the frozen base model on the meta device: it takes no memory until it has been sharded and filled."""
    with torch.device("meta"):
        model = CausalDecoder(shape, max_sequence_length, checkpoint_activations).to(dtype)
    return model.requires_grad_(False)


def _layer(layer_class: type[nn.Module], shape: ModelShape, rotary: nn.Module) -> nn.Module:
    size, head_dim = shape.hidden_size, shape.head_dim
    key_value_size = shape.num_kv_heads * head_dim
    attention = MultiHeadAttention(
        embed_dim=size,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=head_dim,
        q_proj=nn.Linear(size, shape.num_heads * head_dim, bias=shape.attention_bias),
        k_proj=nn.Linear(size, key_value_size, bias=shape.attention_bias),
        v_proj=nn.Linear(size, key_value_size, bias=shape.attention_bias),
        output_proj=nn.Linear(shape.num_heads * head_dim, size, bias=False),
        pos_embeddings=rotary,
    )
    feed_forward = FeedForward(
        gate_proj=nn.Linear(size, shape.intermediate_size, bias=False),
        down_proj=nn.Linear(shape.intermediate_size, size, bias=False),
        up_proj=nn.Linear(size, shape.intermediate_size, bias=False),
    )
    return layer_class(
        attention,
        feed_forward,
        sa_norm=RMSNorm(size, eps=shape.norm_epsilon),
        mlp_norm=RMSNorm(size, eps=shape.norm_epsilon),
    )


def _rotary_embeddings(shape: ModelShape, max_sequence_length: int) -> nn.Module:
    sizes: dict[str, Any] = {
        "dim": shape.head_dim,
        "max_seq_len": max_sequence_length,
        "base": shape.rope_theta,
    }
    scaling = shape.rope_scaling
    if shape.family is Family.QWEN2:
        rotary: nn.Module = Qwen2RotaryPositionalEmbeddings(**sizes)
    elif scaling is None:
        rotary = RotaryPositionalEmbeddings(**sizes)
    else:
        rotary = Llama3ScaledRoPE(
            **sizes,
            scale_factor=scaling.factor,
            low_freq_factor=scaling.low_frequency_factor,
            high_freq_factor=scaling.high_frequency_factor,
            old_context_len=scaling.original_max_positions,
        )
    return rotary


def rotary_frequencies(shape: ModelShape, max_sequence_length: int) -> torch.Tensor:
    """Return the angle of a pair of features between neighbouring positions, fp32 [head_dim / 2]."""
    rotary: Any = _rotary_embeddings(shape, max_sequence_length)
    frequencies: torch.Tensor = rotary.theta
    return frequencies


def attention_mask(batch: Batch) -> Any:
    """Return the mask that keeps the documents of a packed sequence apart, or None where causal attention is enough.

    On a GPU it is a BlockMask, for which torchtune takes FlexAttention, else a bool tensor [b, s, s].
    """
    if batch.document_lengths is None:
        return None
    # NB: torchtune chooses by whether the machine has a GPU, not by where the batch is.
    make_mask = packed_block_causal_mask if batch.tokens.is_cuda else create_block_causal_mask
    return make_mask(list(batch.document_lengths))


def has_interleaved_rotary(family: Family) -> bool:
    """Say whether torchtune pairs neighbouring features for the rotary positions of a family.

    Hugging Face pairs feature i with feature i + head_dim / 2. Where torchtune does not (all but Qwen), the rows of
    the q and k projections are permuted when weights are read, and back when an adapter is written.
    """
    return family is not Family.QWEN2


def read_weights(directory: Path, shape: ModelShape, device: torch.device = CPU) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the checkpoint's weights one at a time, under torchtune's names, those of a layer one after another.

    For a GPU they are there already, and what comes next is read meanwhile; for a CPU they are the memory-mapped files.

    Raises:
        TrainerError: MODEL_UNAVAILABLE when there is no readable safetensors file, MODEL_UNSUPPORTED when a weight
            has a name that no supported model has.
    """
    convert = _conversion(shape)
    found = find_tensors(find_weight_files(directory))
    tensors = [stored for stored in found if not is_passed_over(stored.name, shape)]
    for stored, tensor in read_tensors(tensors, device):
        yield from _converted(convert, stored.name, tensor, stored.path)


Conversion = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def _conversion(shape: ModelShape) -> Conversion:
    sizes = {
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads,
        "dim": shape.hidden_size,
        "head_dim": shape.head_dim,
    }
    convert = hf_to_tune if has_interleaved_rotary(shape.family) else qwen2_hf_to_tune
    return lambda weights: convert(weights, **sizes)


def _converted(convert: Conversion, name: str, weight: torch.Tensor, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        converted = convert({name: weight})
    except Exception as error:  # torchtune raises nothing more special for a name that it does not know
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"{path}: weight {name!r} of shape {list(weight.shape)} is not understood: {error}",
        ) from error
    yield from converted.items()
