"""Memory that is spread over processes: each keeps a share, and all read the whole together when they need it."""

import torch
import torch.distributed as dist
from torch import Tensor

from finetune_trainer.contract.spec import Sharding
from finetune_trainer.gang import COLLECTIVE_TIMEOUT, Place

# NB: newer versions of PyTorch have given it another name, and warn of the old one.
gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class Exchange:
    """What a process shares with the others of its group.

    Args:
        group: the processes that share.
        device: of this process.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.group, self.device = group, device
        self.rank, self.num_processes = group.rank(), group.size()

    def open(self, num_bytes: int) -> Tensor:
        """Take memory for this process' share, uint8 [num_bytes], as all others do at the same time."""
        self._share = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        return self._share

    def read(self, start: int, out: Tensor) -> None:
        """Put a part of each share one behind the other; all have to read the same in the same order.

        Args:
            start: of the part, the same in each share.
            out: uint8 [num_processes * bytes of the part].
        """
        part = self._share[start : start + len(out) // self.num_processes]
        gather(out, part, group=self.group)

    def publish(self) -> None:
        """Wait until every process has filled its share."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        dist.barrier(self.group)


def make_exchange(sharding: Sharding, place: Place) -> Exchange:
    """Return the exchange of this process: within its node for `hybrid`, over the whole gang for `full`.

    Every process of the gang has to call it.
    """
    group = dist.group.WORLD
    if sharding is Sharding.HYBRID and place.num_nodes > 1:
        per_node = place.processes_per_node
        for node in range(place.num_nodes):
            ranks = list(range(node * per_node, (node + 1) * per_node))
            made = dist.new_group(ranks, timeout=COLLECTIVE_TIMEOUT)
            group = made if place.rank in ranks else group
    assert group is not None
    return Exchange(group, place.device)
