"""Forward and backward passes that the GPU repeats by itself, for models so small that launching them takes longer.

A step of SmolLM2-135M at 8 x 2048 tokens is some 2,400 kernels, for which the program needs 88 ms, and which an H100
computes in 52: it was busy for 59 % of the time. With graphs a step takes 52 ms, 1.7 times as fast; in a whole `train`
55, 93 % busy (docs/LOG.md). So the passes through the layers are kept as two CUDA graphs
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), one forward and one backward, and a micro-batch is
copied to where they read it. The loss between them is launched as ever, as each micro-batch has another number of
targets. docs/design/2026-11-28-cuda-graphs.md says why it is so.

A graph is of one layout: rows, their length, and room for so many documents of such a length. What lies there may be
less: documents that are not there have no tokens. It is kept when its layout comes for the second time; the first time
chooses and compiles kernels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from finetune_trainer.data.batch import Batch
from finetune_trainer.fused.attention import Documents, are_short, extents_of, sent
from finetune_trainer.fused.decoder import FusedDecoder, Record, spread_gradient
from finetune_trainer.kernels.fallback import fall_back
from finetune_trainer.passes import LaunchedPasses, Passes

FEWEST_DOCUMENTS, SHORTEST_DOCUMENT = 16, 256
# Graphs share the memory they compute in, but each keeps a list of its kernels on the GPU.
MAX_LAYOUTS = 8

Result = TypeVar("Result")


@dataclass(frozen=True)
class Layout:
    """What a graph fixes of a batch.

    Attributes:
        rows: sequences.
        length: of each, padding included.
        documents: room for so many; 0 where rows are whole.
        longest: tokens that a document may have.
        is_short: they are so short in the mean that another kernel has them.
    """

    rows: int
    length: int
    documents: int = 0
    longest: int = 0
    is_short: bool = False

    @classmethod
    def of(cls, batch: Batch) -> "Layout":
        """Return the layout of a batch: numbers of its documents are rounded up, so that few layouts do."""
        rows, length = batch.tokens.shape
        if batch.document_lengths is None:
            return cls(rows, length)
        count = sum(len(row) for row in batch.document_lengths)
        longest = max(int(row.max()) for row in batch.document_lengths)
        room = min(_power_of_two(longest, SHORTEST_DOCUMENT), length)
        return cls(rows, length, _power_of_two(count, FEWEST_DOCUMENTS), room, are_short(rows * length, count))

    def boundaries(self, batch: Batch) -> Tensor:
        """Return where the documents start, int32 [documents + 1] on the CPU; those that are not there at the end."""
        assert batch.document_lengths is not None
        ends = torch.cat(batch.document_lengths).cumsum(0)
        boundaries = torch.full((self.documents + 1,), self.rows * self.length, dtype=torch.int32)
        boundaries[0], boundaries[1 : len(ends) + 1] = 0, ends
        return boundaries


def _power_of_two(number: int, least: int) -> int:
    return max(least, 1 << (number - 1).bit_length())


class LayoutGraphs:
    """The two graphs of a layout, and what they read and write."""

    @torch.no_grad()
    def __init__(self, decoder: FusedDecoder, batch: Batch, layout: Layout, pool: Any) -> None:
        self._decoder, self._layout = decoder, layout
        device = batch.tokens.device
        self._tokens, self._places = torch.empty_like(batch.tokens), torch.empty_like(batch.positions)
        documents = Documents(layout.rows)
        self._boundaries: Tensor | None = None
        self._extents: Tensor | None = None
        if layout.documents:
            self._boundaries = torch.empty(layout.documents + 1, dtype=torch.int32, device=device)
            if layout.is_short:
                self._extents = torch.empty(2, layout.rows * layout.length, dtype=torch.int32, device=device)
            documents = Documents(layout.rows, self._boundaries, layout.longest, extents=self._extents)
        # Drawn for their size alone: `RepeatedPasses` sets the generator back.
        seeds = decoder.draw_seeds()
        self._seeds = None if seeds is None else seeds.to(device)
        record, inputs = Record(), decoder.inputs(self._tokens, self._places, documents, self._seeds)
        self._forward, self._normalised = _capture(pool, lambda: decoder.run_layers(inputs, record))
        self._gradient = record.gradient = torch.empty_like(self._normalised)
        self._backward, _ = _capture(pool, lambda: decoder.run_layers_backward(record))

    @torch.no_grad()
    def add_gradients(self, batch: Batch, factor: float) -> Tensor:
        """Add the gradients of a batch of the layout, and return its summed loss; both times a factor."""
        scale = torch.full((), factor, device=batch.tokens.device)
        self._write(batch)
        self._forward.replay()
        loss, gradient = self._decoder.loss_of(self._normalised, batch)
        spread_gradient(gradient, batch, scale, self._gradient)
        self._backward.replay()
        return loss * scale

    def _write(self, batch: Batch) -> None:
        self._tokens.copy_(batch.tokens)
        self._places.copy_(batch.positions)
        if self._boundaries is not None:
            self._boundaries.copy_(sent(self._layout.boundaries(batch), self._boundaries.device))
        if self._extents is not None:
            assert batch.document_lengths is not None
            self._extents.copy_(sent(extents_of(batch.document_lengths), self._extents.device))
        if self._seeds is not None:
            seeds = self._decoder.draw_seeds()
            assert seeds is not None
            self._seeds.copy_(sent(seeds, self._seeds.device))


def _capture(pool: Any, compute: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Keep what is computed as a graph; nothing is computed yet."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Other threads go on: checkpoints are copied, NCCL looks after its operations.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = compute()
    finally:
        torch.cuda.set_stream(stream)  # NB: where a capture fails, PyTorch stays on the stream of the capture
    return graph, result


class RepeatedPasses(Passes):
    """Adds up gradients of micro-batches, by graphs where it can, else kernel by kernel.

    Args:
        decoder: whose formats keep nothing in mind from one product to the next but what is on the GPU.
    """

    def __init__(self, decoder: FusedDecoder) -> None:
        decoder.leaves_out_untrained = False  # a graph computes as many rows each time
        self._decoder, self._launched = decoder, LaunchedPasses(decoder)
        self._pool: Any = None
        self._kept: dict[Layout, LayoutGraphs] = {}
        self._met: set[Layout] = set()
        self._has_given_up = False

    @property
    def num_graphs(self) -> int:
        """Layouts whose passes are kept."""
        return len(self._kept)

    def add_gradients(self, batch: Batch, num_targets: int) -> Tensor:
        """Add gradients by the graphs of the batch's layout, or kernel by kernel where it has none."""
        layout = Layout.of(batch)
        graphs = self._graphs(batch, layout)
        if graphs is not None:
            return graphs.add_gradients(batch, 1 / num_targets)
        self._met.add(layout)
        return self._launched.add_gradients(batch, num_targets)

    def _graphs(self, batch: Batch, layout: Layout) -> LayoutGraphs | None:
        if layout in self._kept:
            return self._kept[layout]
        if self._has_given_up or layout not in self._met or len(self._kept) == MAX_LAYOUTS:
            return None
        random = torch.get_rng_state()
        try:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._kept[layout] = LayoutGraphs(self._decoder, batch, layout, self._pool)
        except RuntimeError as error:  # of CUDA; too little memory is one, too
            self._has_given_up = True
            self._kept.clear()
            fall_back("CUDA graph", "passes are not kept as CUDA graphs, kernels are launched anew, slower", error)
        torch.set_rng_state(random)
        return self._kept.get(layout)
