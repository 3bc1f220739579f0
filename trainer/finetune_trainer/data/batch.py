"""Micro-batches: packed sequences side by side, as the tensors that one forward pass needs."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace

import numpy as np
import torch

from finetune_trainer.data.packed import Sequence

PADDING_TOKEN = 0  # any token will do: nothing attends to padding, and it carries no loss


@dataclass(frozen=True)
class Batch:
    """One micro-batch of b sequences, padded on the right to s tokens.

    The loss is computed only where there is something to predict, so the targets are a list of their own: the hidden
    state at `predicting[i]` of the flattened [b * s] positions predicts token `targets[i]`. Finding the places here,
    on the CPU, spares the GPU the head's product for the other tokens and a synchronisation.
    """

    tokens: torch.Tensor  # int64 [b, s]
    positions: torch.Tensor  # int64 [b, s]; start at 0 in each document
    predicting: torch.Tensor  # int64 [num_targets]
    targets: torch.Tensor  # int64 [num_targets]
    # Lengths of each sequence's documents, padding as the last; their sum is s. None: one document a sequence, for
    # which causal attention alone is enough.
    document_lengths: tuple[torch.Tensor, ...] | None
    num_tokens: int  # without padding
    num_pairs: int  # of a token and one that it sees, itself included, without padding

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on a device; the lengths stay, masks are made from them."""
        if device.type == "cpu":
            return self
        tensors = {
            name: getattr(self, name).pin_memory().to(device, non_blocking=True)
            for name in ("tokens", "positions", "predicting", "targets")
        }
        return replace(self, **tensors)


def make_batch(sequences: Rows[Sequence | None], length_multiple: int = 1) -> Batch:
    """Lay sequences side by side.

    Args:
        sequences: the rows of the batch; None is an empty slot, a row of padding without targets.
        length_multiple: s is rounded up to a multiple of this.
    """
    longest = max((len(sequence.tokens) for sequence in sequences if sequence is not None), default=1)
    length = -(-longest // length_multiple) * length_multiple
    tokens = np.full((len(sequences), length), PADDING_TOKEN, dtype=np.int64)
    positions = np.zeros((len(sequences), length), dtype=np.int64)
    predicting, targets, lengths = [], [], []
    for row, sequence in enumerate(sequences):
        documents = _document_lengths(sequence, length)
        positions[row] = _positions(documents)
        lengths.append(torch.from_numpy(documents))
        if sequence is None:
            continue
        tokens[row, : len(sequence.tokens)] = sequence.tokens
        target_places = np.flatnonzero(sequence.trained & (positions[row, : len(sequence.tokens)] > 0))
        predicting.append(row * length + target_places - 1)
        targets.append(sequence.tokens[target_places].astype(np.int64))
    is_packed = any(sequence is not None and len(sequence.document_lengths) > 1 for sequence in sequences)
    return Batch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        predicting=torch.from_numpy(np.concatenate([*predicting, np.zeros(0, np.int64)])),
        targets=torch.from_numpy(np.concatenate([*targets, np.zeros(0, np.int64)])),
        document_lengths=tuple(lengths) if is_packed else None,
        num_tokens=sum(len(sequence.tokens) for sequence in sequences if sequence is not None),
        num_pairs=sum(_num_pairs(sequence) for sequence in sequences if sequence is not None),
    )


def _num_pairs(sequence: Sequence) -> int:
    lengths = sequence.document_lengths.astype(np.int64)
    return int((lengths * (lengths + 1) // 2).sum())


def _document_lengths(sequence: Sequence | None, length: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    documents = np.zeros(0, np.int64) if sequence is None else sequence.document_lengths.astype(np.int64)
    padding = length - int(documents.sum())
    return np.append(documents, padding) if padding else documents


def _positions(
    document_lengths: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    starts = np.cumsum(document_lengths) - document_lengths
    return np.arange(int(document_lengths.sum())) - np.repeat(starts, document_lengths)
