"""Which sequences a step trains on, and which of them a process computes.

A pure function of the seed, the epoch and the step: a run that is resumed, on any number of processes, goes on with
the very sequences that the first run would have taken next.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

EMPTY_SLOT = -1


@dataclass(frozen=True)
class SequenceOrder:
    """The order of the sequences: a new permutation of all of them each epoch.

    Args:
        num_sequences: sequences of the prepared data, at least 1.
        global_batch: sequences of one optimizer step over all processes, at least 1.
        seed: `training.seed`.
    """

    num_sequences: int
    global_batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_sequences < 1 or self.global_batch < 1:
            raise ValueError(f"no order for {self.num_sequences} sequences in batches of {self.global_batch}")

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every sequence was trained on once; the last may be short. A job may stop earlier."""
        return -(-self.num_sequences // self.global_batch)

    def permutation(self, epoch: int) -> Indices:
        """Return all sequence indices in the order of an epoch, [num_sequences], read-only.

        Sorted by the raw output of the counter-based generator Philox (Salmon et al. 2011,
        https://doi.org/10.1145/2063384.2063405).
        NB: numpy promises its raw bit streams for ever, `Generator.permutation` it does not
        (https://numpy.org/doc/stable/reference/random/compatibility.html); an order that changed with numpy's
        version would resume a run on wrong data without anybody noticing.
        """
        return _permutation(self.num_sequences, self.seed, epoch)

    def global_batch_indices(self, epoch: int, step: int) -> Indices:
        """Return the sequences of a step, `step` counted from 0 within its epoch; [<= global_batch].

        Raises:
            IndexError: the epoch has no such step.
        """
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch} steps")
        start = step * self.global_batch
        return self.permutation(epoch)[start : start + self.global_batch]


@lru_cache(maxsize=2)  # each step asks for that of its epoch
def _permutation(num_sequences: int, seed: int, epoch: int) -> Indices:
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_sequences)
    permutation = np.argsort(keys, kind="stable").astype(np.int64)
    permutation.setflags(write=False)
    return permutation


def rank_share(
    indices: Indices, rank: int, world_size: int, batch_size: int, gradient_accumulation: int
) -> list[Indices]:
    """Return the micro-batches that one process computes of a global batch, each [batch_size].

    Every process gets the same number of micro-batches, so that collective operations stay in step; in a short
    global batch slots without a sequence hold `EMPTY_SLOT`, and micro-batches that would be empty everywhere are
    left out. Sequences are dealt like cards, so no process has two more than another. Together the processes hold
    exactly `indices`, whatever the world size.

    Raises:
        ValueError: more indices than the processes have slots for, or no such rank.
    """
    num_slots = world_size * batch_size
    if not 0 <= rank < world_size or len(indices) > num_slots * gradient_accumulation:
        raise ValueError(
            f"rank {rank} of {world_size}: {len(indices)} sequences do not fit into {gradient_accumulation} "
            f"micro-batches of {num_slots}"
        )
    num_micro_batches = -(-len(indices) // num_slots)
    slots = np.full(num_micro_batches * num_slots, EMPTY_SLOT, dtype=np.int64)
    slots[: len(indices)] = indices
    return list(slots.reshape(num_micro_batches, batch_size, world_size)[:, :, rank])
