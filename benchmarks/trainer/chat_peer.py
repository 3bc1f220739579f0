"""What `chat` puts into torchtune's recipe: the prepared conversations, one by one."""

from pathlib import Path

import numpy as np

from finetune_trainer.data.packed import PackedSequences

IGNORED_LABEL = -100


class Padding:
    """In the place of a tokenizer, of which the recipe asks this alone: the data is tokenised already."""

    pad_id = 0


class PreparedChats:
    """The conversations that `prepare` packed, taken apart again.

    Args:
        _tokenizer: of the recipe; not needed.
        directory: of the prepared data.
    """

    def __init__(self, _tokenizer: object, directory: str) -> None:
        self._sequences = PackedSequences.open(Path(directory))
        self._places = [
            (index, int(end - length), int(end))
            for index in range(len(self._sequences))
            for length, end in _documents(self._sequences.sequence(index).document_lengths)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        """Return a conversation as the recipe takes one; its collation shifts the labels."""
        index, start, end = self._places[number]
        sequence = self._sequences.sequence(index)
        tokens = sequence.tokens[start:end]
        return {
            "tokens": tokens.tolist(),
            "labels": np.where(sequence.trained[start:end], tokens, IGNORED_LABEL).tolist(),
        }


def _documents(lengths: np.ndarray[tuple[int], np.dtype[np.int32]]) -> "zip[tuple[int, int]]":
    return zip(lengths, np.cumsum(lengths), strict=True)
