"""The order in which sequences are trained: the same for ever, whatever the number of processes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data.order import EMPTY_SLOT, SequenceOrder, rank_share


def test_an_epoch_takes_every_sequence_once_and_the_last_batch_may_be_short() -> None:
    order = SequenceOrder(num_sequences=10, global_batch=4, seed=1)
    batches = [order.global_batch_indices(0, step) for step in range(order.steps_per_epoch)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches).tolist()) == list(range(10))


def test_the_order_never_changes() -> None:
    # From Philox4x64-10 written out after the paper, in a program that reproduces the known answers of its authors
    # (https://github.com/DEShawResearch/random123/blob/main/tests/kat_vectors): counters 1 and 2, key (seed, epoch).
    assert SequenceOrder(8, 8, seed=0).global_batch_indices(0, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert SequenceOrder(8, 8, seed=0).global_batch_indices(1, 0).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    orders = [
        tuple(SequenceOrder(100, 100, seed).permutation(epoch).tolist())
        for seed in (0, 1, 2**32 - 1)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9


def test_every_sequence_comes_first_about_equally_often() -> None:
    firsts = [int(SequenceOrder(4, 4, seed).permutation(0)[0]) for seed in range(4000)]
    # 1000 are expected of each; the standard deviation is 27.
    assert all(abs(count - 1000) < 140 for count in np.bincount(firsts, minlength=4))


def test_the_order_cannot_be_changed_by_whoever_reads_it() -> None:
    with pytest.raises(ValueError, match="read-only"):
        SequenceOrder(4, 2, 0).permutation(0)[0] = 3


@given(
    num_indices=st.integers(1, 48),
    world_size=st.sampled_from([1, 2, 3, 4, 6]),
    batch_size=st.sampled_from([1, 2, 4]),
)
def test_the_processes_together_hold_the_batch_and_all_compute_equally_often(
    num_indices: int, world_size: int, batch_size: int
) -> None:
    indices = np.arange(100, 100 + num_indices)
    accumulation = -(-48 // (world_size * batch_size))
    shares = [rank_share(indices, rank, world_size, batch_size, accumulation) for rank in range(world_size)]
    held = [index for share in shares for batch in share for index in batch.tolist() if index != EMPTY_SLOT]
    assert sorted(held) == indices.tolist()
    assert {len(share) for share in shares} == {-(-num_indices // (world_size * batch_size))}
    assert all(batch.shape == (batch_size,) for share in shares for batch in share)
    sizes = [sum(int((batch != EMPTY_SLOT).sum()) for batch in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_sequences_are_dealt_like_cards_and_empty_slots_are_marked() -> None:
    indices = np.array([7, 3, 9, 5, 1])
    assert [batch.tolist() for batch in rank_share(indices, 0, 2, 2, 2)] == [[7, 9], [1, -1]]
    assert [batch.tolist() for batch in rank_share(indices, 1, 2, 2, 2)] == [[3, 5], [-1, -1]]


@pytest.mark.parametrize(("rank", "num_indices"), [(2, 4), (-1, 4), (0, 9)])
def test_a_share_that_cannot_be_is_refused(rank: int, num_indices: int) -> None:
    with pytest.raises(ValueError, match="rank"):
        rank_share(np.arange(num_indices), rank, world_size=2, batch_size=2, gradient_accumulation=2)


def test_a_step_behind_the_epochs_end_and_an_order_of_nothing_are_refused() -> None:
    with pytest.raises(IndexError):
        SequenceOrder(10, 4, 0).global_batch_indices(0, 3)
    with pytest.raises(ValueError, match="no order"):
        SequenceOrder(0, 4, 0)
