import numpy as np

from finetune_trainer.data.batch import make_batch
from finetune_trainer.data.packed import Sequence


def sequence(tokens: list[int], trained: list[int], document_lengths: list[int]) -> Sequence:
    return Sequence(np.array(tokens, np.int32), np.array(trained, np.bool_), np.array(document_lengths, np.int32))


def test_positions_start_again_in_each_document() -> None:
    batch = make_batch([sequence([1, 2, 3, 4, 5], [0, 0, 0, 0, 0], [2, 3])])
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2]]


def test_a_trained_token_is_predicted_by_the_token_before_it() -> None:
    batch = make_batch([sequence([10, 11, 12, 13], [0, 1, 0, 1], [4])])
    assert batch.predicting.tolist() == [0, 2]
    assert batch.targets.tolist() == [11, 13]


def test_the_first_token_of_a_document_is_not_predicted_from_the_document_before() -> None:
    batch = make_batch([sequence([10, 11, 12, 13], [1, 1, 1, 1], [2, 2])])
    assert batch.targets.tolist() == [11, 13]


def test_padding_is_no_target_and_a_document_of_its_own() -> None:
    batch = make_batch([sequence([1, 2, 3, 4], [1] * 4, [1, 3]), sequence([7, 8], [1, 1], [2])])
    assert batch.tokens.tolist() == [[1, 2, 3, 4], [7, 8, 0, 0]]
    assert batch.targets.tolist() == [3, 4, 8]
    assert batch.predicting.tolist() == [1, 2, 4]
    assert [lengths.tolist() for lengths in batch.document_lengths or ()] == [[1, 3], [2, 2]]
    assert batch.num_tokens == 6


def test_unpacked_sequences_need_no_mask() -> None:
    assert make_batch([sequence([1, 2], [1, 1], [2]), sequence([1], [1], [1])]).document_lengths is None


def test_an_empty_slot_is_a_row_of_padding() -> None:
    batch = make_batch([None, sequence([1, 2], [1, 1], [2])])
    assert batch.tokens.tolist() == [[0, 0], [1, 2]]
    assert batch.targets.tolist() == [2]
    assert make_batch([None]).tokens.tolist() == [[0]]


def test_the_length_is_rounded_up_for_kernels_that_work_in_blocks() -> None:
    assert make_batch([sequence([1, 2, 3], [0, 0, 0], [3])], length_multiple=8).tokens.shape == (1, 8)


def test_the_batch_has_as_many_targets_as_prepare_counted() -> None:
    row = sequence([1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 0], [1, 2, 3])
    assert len(make_batch([row]).targets) == row.num_targets == 2
