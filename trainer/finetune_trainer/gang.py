"""The processes that train together: where one of them stands, and what they tell each other."""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


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


def sum_over_gang(tensor: torch.Tensor) -> None:
    """Add up a tensor over all processes, in place; every process then has the same."""
    dist.all_reduce(tensor)


def broadcast(value: Value) -> Value:
    """Return rank 0's value on every process; it has to be picklable."""
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0)
    received: Value = values[0]
    return received
