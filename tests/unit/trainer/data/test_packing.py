"""Documents into sequences: nothing lost, nothing too long, little room left."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data.packing import pack

CAPACITY = 64


def packed(lengths: list[int], capacity: int) -> list[list[int]]:
    return [documents.tolist() for documents in pack(np.array(lengths, dtype=np.int64), capacity)]


LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=200).map(lambda lengths: np.array(lengths, dtype=np.int64))


@given(LENGTHS)
def test_every_document_is_in_exactly_one_sequence_and_none_is_too_long(lengths: np.ndarray) -> None:  # type: ignore[type-arg]
    sequences = pack(lengths, CAPACITY)
    assert sorted(document for sequence in sequences for document in sequence) == list(range(len(lengths)))
    assert all(lengths[sequence].sum() <= CAPACITY for sequence in sequences)


@given(LENGTHS)
def test_no_two_sequences_would_fit_into_one(lengths: np.ndarray) -> None:  # type: ignore[type-arg]
    sums = sorted(int(lengths[sequence].sum()) for sequence in pack(lengths, CAPACITY))
    assert len(sums) < 2 or sums[0] + sums[1] > CAPACITY


def test_the_longest_come_first_each_where_it_fits_best() -> None:
    # 7 | 6 2 (not 7 2: that leaves more room) | 5 3
    assert packed([2, 7, 3, 6, 5], 8) == [[1], [0, 3], [2, 4]]


def test_documents_of_equal_length_keep_their_order() -> None:
    assert packed([4, 4, 4, 4], 8) == [[0, 1], [2, 3]]


def test_no_documents_make_no_sequences() -> None:
    assert packed([], 8) == []


@pytest.mark.parametrize("lengths", [[9], [0]])
def test_a_document_that_fits_nowhere_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="in sequences of 8"):
        packed(lengths, 8)
