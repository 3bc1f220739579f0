"""The tokens behind the prompts, one a row at a time, always in the same memory.

A small step of many kernels: a model of 30 layers launches some 2,700 of them for one token a row, and the GPU has done
each before the next is launched. So after a first step, which chooses kernels, the GPU keeps the step as a CUDA graph
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), and repeats it by itself. A CPU computes the same,
kernel by kernel.
"""

import torch

from finetune_trainer.inference.cache import KeyValueCache
from finetune_trainer.inference.decoder import Decoder


class Continuation:
    """Adds tokens to the rows of a cache.

    Args:
        decoder: what computes.
        cache: of the rows, with all tokens so far; nothing else adds to it from now on.
        padding: places before the first token of each row, int64 [b].
        length: tokens of a row so far, its padding included.
        adapted: whether the adapter takes part.
    """

    def __init__(
        self, decoder: Decoder, cache: KeyValueCache, padding: torch.Tensor, length: int, *, adapted: bool
    ) -> None:
        self._decoder, self._cache, self._padding, self._adapted = decoder, cache, padding, adapted
        self._place = torch.tensor([length], device=decoder.device)
        self._tokens = torch.zeros((len(padding), 1), dtype=torch.int64, device=decoder.device)
        self._has_stepped = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def add(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add a token to each row, int64 [b], and return the logits of the next, [b, vocab_size].

        They are overwritten by the next call.
        """
        self._tokens.copy_(tokens[:, None])
        if self._decoder.device.type == "cpu" or not self._has_stepped:
            self._has_stepped = True
            return self._step()
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._logits = self._step()
        self._graph.replay()
        return self._logits

    def _step(self) -> torch.Tensor:
        places = torch.arange(self._cache.capacity, device=self._decoder.device)
        is_seen = (places >= self._padding[:, None]) & (places <= self._place)
        unseen = torch.zeros(is_seen.shape, dtype=self._decoder.dtype, device=self._decoder.device)
        unseen.masked_fill_(~is_seen, -torch.inf)  # added to the scores by every layer, so it is made once
        hidden = self._decoder.hidden_states(
            self._tokens,
            (self._place - self._padding)[:, None],
            adapted=self._adapted,
            mask=unseen[:, None, None],
            cache=self._cache,
            place=self._place,
        )
        self._place += 1
        return self._decoder.logits(hidden[:, -1])
