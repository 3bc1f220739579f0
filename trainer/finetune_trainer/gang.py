"""The processes that train together: where one of them stands, and what they tell each other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from finetune_trainer.contract.progress import ProgressReport
from finetune_trainer.stopping import StopRequest

Value = TypeVar("Value")

# Longer than what keeps one process from meeting the others: reading weights, verifying a checkpoint. Shorter than
# runPolicy.stallTimeoutSeconds, so that a process says for whom it waited before the gang is given up.
COLLECTIVE_TIMEOUT = timedelta(minutes=20)


@dataclass(frozen=True)
class Place:
    """Where a process stands in the gang."""

    rank: int
    local_rank: int
    world_size: int
    processes_per_node: int
    device: torch.device

    @property
    def num_nodes(self) -> int:
        """Nodes of the gang."""
        return self.world_size // self.processes_per_node

    @property
    def node_rank(self) -> int:
        """Number of this process' node in the gang, from 0."""
        return self.rank // self.processes_per_node


@dataclass(frozen=True)
class Node:
    """What a process has to do with the node that it runs on, and with the agent that started it."""

    metrics_port: int
    environment: Mapping[str, str]
    stop: StopRequest = field(default_factory=StopRequest)
    leave_progress: Callable[[ProgressReport], None] = lambda _: None  # for the last word, should this process die


def sum_over_gang(tensor: torch.Tensor) -> None:
    """Add up a tensor over all processes, in place; every process then has the same."""
    dist.all_reduce(tensor)


def broadcast(value: Value) -> Value:
    """Return rank 0's value on every process; it has to be picklable."""
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0)
    received: Value = values[0]
    return received


class StopVote:
    """Lets all processes stop at the same micro-batch, though only those of one node may have been asked to.

    They count who was asked in a reduction between any two micro-batches, whose result is looked at one micro-batch
    later. So it costs no time, and no GPU is waited for: it has a process group of its own, on the CPUs. It also tells
    a process that another was lost while the GPUs still wait for it.

    Args:
        is_asked: whether this process was asked to stop.
    """

    def __init__(self, is_asked: Callable[[], bool]) -> None:
        self._is_asked = is_asked
        self._group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if dist.get_world_size() > 1 else None
        self._num_asked = torch.zeros((), dtype=torch.int32)
        self._count: dist.Work | None = None

    def is_stop_agreed(self) -> bool:
        """Return the same on every process; all of them have to call this equally often."""
        if self._group is None:
            return self._is_asked()
        if self._count is not None:
            self._count.wait()
        is_agreed = bool(self._num_asked.item())
        self._num_asked = torch.tensor(int(self._is_asked()), dtype=torch.int32)
        self._count = dist.all_reduce(self._num_asked, group=self._group, async_op=True)
        return is_agreed

    def close(self) -> None:
        """Wait for the last count, of which nobody wants to know any more."""
        if self._count is not None:
            self._count.wait()
