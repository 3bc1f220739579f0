"""The loss of held-out rows: how surprising the assistant's words are to a model."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from finetune_trainer.data.render import Document
from finetune_trainer.evaluate.statistics import Floats
from finetune_trainer.inference.decoder import Decoder

# Logits of so many tokens exist at once.
CHUNK_TOKENS = 1024
MAX_BATCH_TOKENS = 16384


@torch.inference_mode()
def document_losses(decoder: Decoder, documents: Sequence[Document], *, adapted: bool) -> tuple[Floats, Floats]:
    """Return for each document the summed loss of its trained tokens, and their number; [num_documents] each.

    The first token of a document is predicted by nothing, as in training.
    """
    losses, counts = np.zeros(len(documents)), np.zeros(len(documents))
    for indices in _batches(documents):
        rows = [documents[index] for index in indices]
        length = max(len(row.tokens) for row in rows)
        tokens = np.zeros((len(rows), length), dtype=np.int64)  # padding behind a row: nothing before it sees it
        trained = np.zeros((len(rows), length), dtype=np.bool_)
        for place, row in enumerate(rows):
            tokens[place, : len(row.tokens)] = row.tokens
            trained[place, 1 : len(row.tokens)] = row.trained[1:]
        losses[indices] = _summed(decoder, torch.from_numpy(tokens), trained, adapted)
        counts[indices] = trained.sum(axis=1)
    return losses, counts


def _batches(documents: Sequence[Document]) -> list[list[int]]:
    """Put documents of like length together, `MAX_BATCH_TOKENS` with their padding at most."""
    batches: list[list[int]] = []
    for index in sorted(range(len(documents)), key=lambda index: -len(documents[index].tokens)):
        longest = len(documents[batches[-1][0]].tokens) if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= MAX_BATCH_TOKENS:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _summed(
    decoder: Decoder, tokens: torch.Tensor, trained: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], adapted: bool
) -> Floats:
    tokens = tokens.to(decoder.device)
    positions = torch.arange(tokens.shape[1], device=decoder.device).expand(tokens.shape)
    hidden = decoder.hidden_states(tokens, positions, adapted=adapted)
    rows, places = np.nonzero(trained)
    sums = np.zeros(len(trained))
    for start in range(0, len(rows), CHUNK_TOKENS):
        row, place = rows[start : start + CHUNK_TOKENS], places[start : start + CHUNK_TOKENS]
        logits = decoder.logits(hidden[row, place - 1])
        losses = functional.cross_entropy(logits, tokens[row, place], reduction="none")
        np.add.at(sums, row, losses.double().cpu().numpy())
    return sums
