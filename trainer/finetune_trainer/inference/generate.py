"""Writing turns: prompts side by side, one token after the other, until each has ended."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from finetune_trainer.inference.cache import KeyValueCache
from finetune_trainer.inference.continuation import Continuation
from finetune_trainer.inference.decoder import Decoder

logger = logging.getLogger(__name__)

# Rows that have ended stay until so large a share of a batch has: to drop one copies the cache of all others.
DROPPED_SHARE = 0.25
# Attention on a GPU reads a mask that is not a multiple of eight long only after it has copied it.
CAPACITY_MULTIPLE = 8

Tokens = npt.NDArray[np.int32]  # [num_tokens]


@dataclass(frozen=True)
class Writing:
    """How a turn is written."""

    stop_tokens: frozenset[int]
    max_new_tokens: int
    adapted: bool
    temperature: float = 0.0  # 0 is greedy: always the likeliest token
    seed: int = 0


@dataclass(frozen=True)
class Written:
    """A turn that was written, without the token that ended it."""

    tokens: tuple[int, ...]
    ended: bool  # False: cut at max_new_tokens, or at the end of what the model can tell positions apart


def generate(
    decoder: Decoder,
    prompts: Sequence[Tokens],
    writing: Writing,
    batch_size: int,
    tell: Callable[[int], None] = lambda _: None,
) -> list[Written]:
    """Write what follows each prompt. Prompts of like length are put into one batch, the longest first.

    A batch that does not fit the GPU's memory is tried again with half of its rows. No later one has more tokens than
    that, padding included; so there are more rows to a batch again where prompts are shorter.

    Args:
        decoder: what writes.
        prompts: tokens before each turn.
        writing: how it writes.
        batch_size: prompts at once.
        tell: is told after each batch how many prompts are done.

    Raises:
        ValueError: a prompt is empty.
        torch.OutOfMemoryError: not even one prompt fits the GPU's memory.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    written: dict[int, Written] = {}
    most_tokens: int | None = None  # of a batch; None: everything has fitted
    while len(written) < len(order):
        longest = len(prompts[order[len(written)]]) + writing.max_new_tokens
        num_rows = batch_size if most_tokens is None else min(batch_size, max(1, most_tokens // longest))
        indices = order[len(written) : len(written) + num_rows]
        try:
            batch = write_batch(decoder, [prompts[index] for index in indices], writing)
        except torch.OutOfMemoryError:
            if len(indices) == 1:
                raise
            most_tokens = len(indices) // 2 * longest
            logger.warning("%d turns of %d tokens do not fit the GPU's memory; trying half", len(indices), longest)
            continue
        written |= dict(zip(indices, batch, strict=True))
        tell(len(written))
    return [written[index] for index in range(len(prompts))]


@torch.inference_mode()
def write_batch(decoder: Decoder, prompts: Sequence[Tokens], writing: Writing) -> list[Written]:
    """Write what follows each prompt of one batch; as `generate`."""
    tokens: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for row, token in stream(decoder, prompts, writing):
        if token in writing.stop_tokens:
            ended[row] = True
        else:
            tokens[row].append(token)
    return [Written(tuple(row), end) for row, end in zip(tokens, ended, strict=True)]


def stream(decoder: Decoder, prompts: Sequence[Tokens], writing: Writing) -> Iterator[tuple[int, int]]:
    """Yield (row, token) as they are written, for one batch, until each row has ended. Needs inference mode."""
    batch = _Batch(decoder, prompts, writing)
    rows, ended = list(range(len(prompts))), set[int]()
    logits = batch.read()
    for _ in range(batch.max_new_tokens):
        chosen = _choose(logits, writing, batch.random)
        numbers = chosen.tolist()
        going = [(row, token) for row, token in zip(rows, numbers, strict=True) if row not in ended]
        yield from going
        ended |= {row for row, token in going if token in writing.stop_tokens}
        going_on = [place for place, row in enumerate(rows) if row not in ended]
        if not going_on:
            return
        if len(going_on) <= (1 - DROPPED_SHARE) * len(rows):
            rows = [rows[place] for place in going_on]
            chosen = chosen[batch.keep(going_on)]
        logits = batch.write(chosen)


class _Batch:
    """Prompts that are padded on the left, so that all of them go on at the same place of the cache."""

    def __init__(self, decoder: Decoder, prompts: Sequence[Tokens], writing: Writing) -> None:
        lengths = [len(prompt) for prompt in prompts]
        if not lengths or not min(lengths):
            raise ValueError("a prompt is empty")
        self._decoder, self._adapted = decoder, writing.adapted
        longest = max(lengths)
        self.max_new_tokens = max(0, min(writing.max_new_tokens, decoder.shape.max_positions - longest))
        self.random = torch.Generator(decoder.device).manual_seed(writing.seed)
        padded = np.zeros((len(prompts), longest), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            padded[row, longest - len(prompt) :] = prompt
        self._tokens = torch.from_numpy(padded).to(decoder.device)
        self._padding = torch.tensor([longest - length for length in lengths], device=decoder.device)
        self._is_padded = min(lengths) < longest
        self._length = longest
        capacity = -(-(longest + self.max_new_tokens) // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
        self._cache: KeyValueCache = decoder.new_cache(len(prompts), capacity)
        self._continuation: Continuation | None = None

    def read(self) -> torch.Tensor:
        """Read the prompts, and return the logits of the first new tokens, [b, vocab_size]."""
        places = torch.arange(self._tokens.shape[1], device=self._tokens.device)
        mask = None
        if self._is_padded:
            is_token = places >= self._padding[:, None]
            # A place of padding sees itself: a softmax over nothing would be no number, and spread from there.
            mask = (is_token[:, None, :] & (places[:, None] >= places)) | (places[:, None] == places)
            mask = mask[:, None]
        positions = (places - self._padding[:, None]).clamp(min=0)
        hidden = self._decoder.hidden_states(
            self._tokens, positions, adapted=self._adapted, mask=mask, cache=self._cache
        )
        return self._decoder.logits(hidden[:, -1])

    def write(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add a token to each row, int64 [b], and return the logits of the next, [b, vocab_size]."""
        if self._continuation is None:
            self._continuation = Continuation(
                self._decoder, self._cache, self._padding, self._length, adapted=self._adapted
            )
        self._length += 1
        return self._continuation.add(tokens)

    def keep(self, rows: list[int]) -> torch.Tensor:
        """Go on with some of the rows; return their places, int64 [number of rows to keep]."""
        places = torch.tensor(rows, device=self._padding.device)
        self._padding = self._padding[places]
        self._continuation = None  # it holds the cache of the others
        self._cache.keep_rows(places)
        return places


def _choose(logits: torch.Tensor, writing: Writing, random: torch.Generator) -> torch.Tensor:
    """Return one token a row, int64 [b]."""
    if writing.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits / writing.temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=random)[:, 0]
