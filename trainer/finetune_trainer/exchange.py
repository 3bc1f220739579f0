"""Memory that is spread over processes: each keeps a share, and reads those of the others when it needs the whole.

Reading is a collective operation, in which all take part. But frozen weights never change, so whoever shares a host
with a process may read its share at any time, without asking it or waiting for it: `PeerCopies` lets the GPU's copy
engines fetch it over NVLink, beside all that computes.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from finetune_trainer.contract.spec import Sharding
from finetune_trainer.gang import COLLECTIVE_TIMEOUT, Place

# NB: newer versions of PyTorch have given it another name, and warn of the old one.
gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)

# Set to 1 to copy out of other GPUs' memory. Not by itself yet: no whole training has run with it.
PEER_COPIES = "FINETUNE_PEER_COPIES"
PROBE_BYTES = 4096


class Exchange(ABC):
    """What a process shares with the others of its group.

    Args:
        group: the processes that share.
        device: of this process.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.group, self.device = group, device
        self.rank, self.num_processes = group.rank(), group.size()

    @abstractmethod
    def open(self, num_bytes: int) -> Tensor:
        """Take memory for this process' share, uint8 [num_bytes], as all others do at the same time."""

    @abstractmethod
    def read(self, start: int, out: Tensor) -> None:
        """Put a part of each share one behind the other.

        Args:
            start: of the part, the same in each share.
            out: uint8 [num_processes * bytes of the part].
        """

    def publish(self) -> None:
        """Wait until every process has filled its share."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        dist.barrier(self.group)


class CollectiveReads(Exchange):
    """Gathers, whenever a process reads; so all have to read the same in the same order."""

    def open(self, num_bytes: int) -> Tensor:
        """Take memory for this process' share."""
        self._share = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        return self._share

    def read(self, start: int, out: Tensor) -> None:
        """Gather a part of each share."""
        part = self._share[start : start + len(out) // self.num_processes]
        gather(out, part, group=self.group)


class PeerCopies(Exchange):
    """Copies out of the memory of the other GPUs of the host; nobody waits for anybody."""

    def open(self, num_bytes: int) -> Tensor:
        """Take memory for this process' share that the others can reach, and learn where theirs is."""
        # Here and not above: a process on CPUs does without it. The module is PyTorch's own, its name says alpha.
        from torch.distributed import _symmetric_memory as symmetric_memory

        share: Tensor = symmetric_memory.empty(num_bytes, dtype=torch.uint8, device=self.device)
        handle = symmetric_memory.rendezvous(share, self.group.group_name)
        self._shares = [handle.get_buffer(rank, (num_bytes,), torch.uint8) for rank in range(self.num_processes)]
        return share

    def read(self, start: int, out: Tensor) -> None:
        """Copy a part of each share, beginning behind this process, so that not all ask the same one first."""
        size = len(out) // self.num_processes
        for distance in range(self.num_processes):
            rank = (self.rank + distance) % self.num_processes
            out[rank * size : (rank + 1) * size].copy_(self._shares[rank][start : start + size], non_blocking=True)


def make_exchange(sharding: Sharding, place: Place, environment: Mapping[str, str] = os.environ) -> Exchange:
    """Return the exchange of this process: within its node for `hybrid`, over the whole gang for `full`.

    Every process of the gang has to call it.
    """
    group, own_node = dist.group.WORLD, place.num_nodes == 1
    if sharding is Sharding.HYBRID and not own_node:
        per_node = place.processes_per_node
        for node in range(place.num_nodes):
            ranks = list(range(node * per_node, (node + 1) * per_node))
            made = dist.new_group(ranks, timeout=COLLECTIVE_TIMEOUT)
            group = made if place.rank in ranks else group
        own_node = True
    assert group is not None
    if own_node and place.device.type == "cuda" and environment.get(PEER_COPIES) == "1":
        if reads_its_peers(group, place.device):
            return PeerCopies(group, place.device)
        if group.rank() == 0:
            print("warning: GPUs do not reach each other's memory, so weights are gathered by NCCL", flush=True)
    return CollectiveReads(group, place.device)


def reads_its_peers(group: dist.ProcessGroup, device: torch.device) -> bool:
    """Try with a little memory whether all GPUs of a group read each other's; all processes are told the same."""
    copies = PeerCopies(group, device)
    read = torch.zeros(group.size(), PROBE_BYTES, dtype=torch.uint8, device=device)
    try:
        copies.open(PROBE_BYTES).fill_(group.rank() + 1)
        copies.publish()
        copies.read(0, read.view(-1))
    except RuntimeError as error:
        print(f"warning: no memory can be shared between GPUs: {error}", flush=True)
    expected = torch.arange(1, group.size() + 1, dtype=torch.uint8, device=device)
    is_right = (read == expected[:, None]).all().to(torch.int32)
    dist.all_reduce(is_right, dist.ReduceOp.MIN, group=group)
    return bool(is_right.item())
