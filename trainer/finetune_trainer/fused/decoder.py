"""The decoder of a fused step: from a batch to its loss, and from there to the gradients of the adapters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Lora
from finetune_trainer.data.batch import Batch
from finetune_trainer.filling import Destination
from finetune_trainer.fused.attention import Documents, documents_of, sent
from finetune_trainer.fused.frozen.weight import FrozenFormat, FrozenWeight, Operand, Places
from finetune_trainer.fused.frozen.whole import Whole
from finetune_trainer.fused.layer import Drops, FusedLayer, Positions, Tape
from finetune_trainer.fused.linear import Drop
from finetune_trainer.fused.spread import SpreadLayers
from finetune_trainer.kernels import kernels_for
from finetune_trainer.loss import loss_and_gradient
from finetune_trainer.model import has_interleaved_rotary, rotary_frequencies

MAX_SEED = 2**31 - 1
# To take rows out and put them back is some passes over memory: not for a few.
MOST_WORTH_LEAVING_OUT = 0.9  # where more of the tokens are trained, the last block computes all


class FusedDecoder(nn.Module):
    """A decoder that ends in the loss of a batch, whole on one device.

    Its trainable parameters are the adapters, by the names that they have in a `CausalDecoder`; the frozen weights are
    no parameters, `destinations` tells where they go.

    Args:
        shape: of the base model.
        lora: the adapter.
        dtype: of products.
        device: that holds the model; the memory is taken at once, its values are not set.
        max_sequence_length: of any batch.
        checkpoint_activations: keep each block's input only, and compute the rest again.
        frozen: what the weights of the blocks are kept as; in the format of the products where it is not given.
        spread: the processes that share the weights of the blocks; this one has them alone where it is not given.
        embedding_on_host: keep the table of embeddings in the host's memory; it must not be the head too.
    """

    def __init__(
        self,
        shape: ModelShape,
        lora: Lora,
        dtype: torch.dtype,
        device: torch.device,
        max_sequence_length: int,
        checkpoint_activations: bool,
        frozen: FrozenFormat | None = None,
        spread: SpreadLayers | None = None,
        embedding_on_host: bool = False,
    ) -> None:
        super().__init__()
        frozen = frozen or Whole(dtype, device)
        self._spread = spread
        self._shape, self._checkpoints = shape, checkpoint_activations
        self._kernels, self._drops = kernels_for(device), lora.dropout > 0
        formats = [frozen.of_layer(number, shape.num_layers) for number in range(shape.num_layers)]
        if spread is not None:
            formats = [own.in_memory(spread.memory_of(number, type(own))) for number, own in enumerate(formats)]
        self.layers = nn.ModuleList(FusedLayer(shape, lora, own) for own in formats)
        table = (shape.vocab_size, shape.hidden_size)
        self._embeddings = make_table(table, dtype, device, embedding_on_host)
        self._head = self._embeddings if shape.tied_embeddings else torch.empty(table, dtype=dtype, device=device)
        self._norm = torch.empty(shape.hidden_size, dtype=dtype, device=device)
        angles = torch.outer(torch.arange(max_sequence_length), rotary_frequencies(shape, max_sequence_length))
        self._cosine, self._sine = angles.cos().to(device), angles.sin().to(device)
        if spread is None:
            self._refresh = make_refresh(frozen, self.blocks)
        else:
            spread.refresh_with([make_refresh(frozen, [layer]) for layer in self.blocks])
            self._refresh = spread.begin_step
        self._anchor = torch.zeros((), requires_grad=True)
        # Whether the last block computes only what a trained token needs, so another number of rows for each batch.
        self.leaves_out_untrained = True

    @property
    def blocks(self) -> list[FusedLayer]:
        """The layers, with their type."""
        return [layer for layer in self.layers if isinstance(layer, FusedLayer)]

    def destinations(self) -> dict[str, Destination]:
        """Return where the frozen weights go, by torchtune's names."""
        found = {"tok_embeddings.weight": Destination.of(self._embeddings), "norm.scale": Destination.of(self._norm)}
        if not self._shape.tied_embeddings:
            found["output.weight"] = Destination.of(self._head)
        for number, layer in enumerate(self.blocks):
            own = layer.destinations()
            if self._spread is not None:
                own = self._spread.kept_when_filled(number, own)
            found |= {f"layers.{number}.{name}": place for name, place in own.items()}
        return found

    def begin_step(self) -> None:
        """Bring the adapters' master values to the products; call it after they have changed."""
        self._refresh()

    def forward(self, batch: Batch) -> Tensor:
        """Return the summed loss of a batch's targets, fp32 scalar."""
        if not torch.is_grad_enabled():
            return self.loss_of(self.run_layers(self.inputs_of(batch), None), batch)[0]
        loss: Tensor = _Loss.apply(self._anchor, self, batch)  # type: ignore[no-untyped-call]
        return loss

    def inputs_of(self, batch: Batch) -> "Inputs":
        """Return what the layers read of a batch; it draws the dropout."""
        device = batch.tokens.device
        seeds = self.draw_seeds()
        on_device = None if seeds is None else sent(seeds, device)
        inputs = self.inputs(batch.tokens, batch.positions, documents_of(batch, device), on_device)
        is_worth_it = 0 < len(batch.predicting) <= MOST_WORTH_LEAVING_OUT * batch.tokens.numel()
        return replace(inputs, needed=batch.predicting) if is_worth_it and self.leaves_out_untrained else inputs

    def inputs(self, tokens: Tensor, places: Tensor, documents: Documents, seeds: Tensor | None) -> "Inputs":
        """Return what the layers read, from tensors on their device."""
        interleaved = has_interleaved_rotary(self._shape.family)
        positions = Positions(places.flatten(), self._cosine, self._sine, interleaved, documents)
        if seeds is None:
            return Inputs(tokens.flatten(), positions, [Drops()] * self._shape.num_layers)
        drops = [Drops(*map(Drop, row.unbind())) for row in seeds.unbind()]
        return Inputs(tokens.flatten(), positions, drops)

    def draw_seeds(self) -> Tensor | None:
        """Draw the dropout of a forward pass, int64 [num_layers, 4] on the CPU, so that no GPU is waited for.

        Returns None where nothing is dropped.
        """
        if not (self.training and self._drops):
            return None
        return torch.randint(MAX_SEED, (self._shape.num_layers, len(Drops._fields)))

    def run_layers(self, inputs: "Inputs", record: "Record | None") -> Tensor:
        """Return the last hidden states, and record what the backward pass needs where there is a record.

        They are of the tokens that are needed, where the inputs name some.
        """
        residual, addend = self._kernels.gather_rows(self._embeddings, inputs.tokens), None
        for number, (layer, drops) in enumerate(zip(self.blocks, inputs.drops, strict=True)):
            self._use(number, number + 1)
            compute = layer.forward_without_tape if self._checkpoints else layer.forward
            residual, addend, tape = compute(residual, addend, inputs.positions, drops, self._needed(number, inputs))
            if record is not None:
                record.tapes.append(tape)
            del tape
        normalised = torch.empty_like(residual)
        hidden, inverse_rms = self._kernels.add_and_normalise(
            residual, addend, self._norm, self._shape.norm_epsilon, normalised
        )
        if record is not None:
            record.inputs, record.hidden, record.inverse_rms = inputs, hidden, inverse_rms
        return normalised

    def _needed(self, number: int, inputs: "Inputs") -> Tensor | None:
        """Return the tokens for which anything behind the attention of a block is needed; None for all."""
        return inputs.needed if number == self._shape.num_layers - 1 else None

    def loss_of(self, normalised: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss, and its gradient with respect to the hidden states that predict a target.

        Args:
            normalised: the last hidden states, of all tokens or of those that predict a target.
            batch: whose targets they predict.
        """
        if len(normalised) != len(batch.predicting):
            normalised = normalised[batch.predicting]
        return loss_and_gradient(normalised, self._head, batch.targets)

    def run_layers_backward(self, record: "Record") -> None:
        """Add to the gradients of the adapters; the record is used up."""
        layers = self.blocks
        incoming: Operand | None = self._last_norm_backward(record)
        for number in reversed(range(len(layers))):
            self._use(number, number - 1)
            below = layers[number - 1] if number else None
            assert incoming is not None
            own, needed = record.inputs.drops[number], self._needed(number, record.inputs)
            incoming = layers[number].backward(
                record.tapes.pop(), incoming, record.inputs.positions, own, below, needed
            )

    def _use(self, number: int, then: int) -> None:
        """Have the frozen weights of a layer where its products read them, and those of the next one on their way."""
        if self._spread is not None:
            self._spread.use(number, then if 0 <= then < self._shape.num_layers else None)

    def _last_norm_backward(self, record: "Record") -> Operand:
        """Return the gradient of the residual stream before the last norm, in the buffers that the last block wants."""
        incoming = self.blocks[-1].new_incoming(len(record.gradient))
        stream = incoming.joined[:, : self._shape.hidden_size]
        stream.zero_()
        self._kernels.normalise_backward(
            record.gradient, record.hidden, record.inverse_rms, self._norm, stream, stream, incoming.rounded
        )
        del record.hidden, record.gradient
        return incoming


def spread_gradient(gradient: Tensor, batch: Batch, scale: Tensor, out: Tensor) -> None:
    """Write the scaled gradient of the hidden states that predict a target to their places, and zeros elsewhere.

    Args:
        gradient: [num_targets, hidden_size].
        batch: whose targets they are.
        scale: fp32 scalar.
        out: as many rows as there are tokens, or as there are targets.
    """
    scale = scale.to(gradient.dtype)
    if len(out) == len(gradient):
        torch.mul(gradient, scale, out=out)
    else:
        out.zero_()
        out[batch.predicting] = gradient * scale


def make_table(shape: tuple[int, int], dtype: torch.dtype, device: torch.device, on_host: bool) -> Tensor:
    """Return an empty table of embeddings; one on the host is pinned, so that a GPU reads rows of it by itself."""
    if on_host and device.type == "cuda":
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return torch.empty(shape, dtype=dtype, device=device)


def make_refresh(frozen: FrozenFormat, layers: Sequence[FusedLayer]) -> Callable[[], None]:
    """Return what brings the adapters' values to the products of some layers."""
    owners = {linear.weight: (linear, layer.adapters) for layer in layers for linear in layer.linears}

    def places(weight: FrozenWeight) -> Places:
        linear, adapters = owners[weight]
        return linear.places(adapters)

    return frozen.make_refresh(list(owners), places)


@dataclass(frozen=True)
class Inputs:
    """What the layers read of a batch."""

    tokens: Tensor  # int64 [tokens]
    positions: Positions
    drops: list[Drops]  # of each layer
    needed: Tensor | None = None  # int64, the tokens whose last hidden states are needed; None for all


class Record:
    """What a forward pass leaves for the backward pass."""

    def __init__(self) -> None:
        self.tapes: list[Tape | Tensor] = []  # of each layer; its input alone where activations are computed again
        self.inputs: Inputs
        self.hidden: Tensor  # the residual stream before the last norm
        self.inverse_rms: Tensor
        self.gradient: Tensor  # of the last hidden states; the backward pass overwrites it


class _Loss(torch.autograd.Function):
    """The whole decoder is one operation of autograd; its gradients go to the adapters' `grad` themselves.

    The anchor is there so that autograd calls the backward pass.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, _: Tensor, decoder: FusedDecoder, batch: Batch) -> Tensor:
        record = Record()
        loss, gradient = decoder.loss_of(decoder.run_layers(decoder.inputs_of(batch), record), batch)
        ctx.decoder, ctx.batch = decoder, batch  # type: ignore[attr-defined]
        ctx.record, ctx.gradient = record, gradient  # type: ignore[attr-defined]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[None, None, None]:
        ctx.record.gradient = torch.empty_like(ctx.record.hidden)
        spread_gradient(ctx.gradient, ctx.batch, scale, ctx.record.gradient)
        del ctx.gradient
        ctx.decoder.run_layers_backward(ctx.record)
        return None, None, None
