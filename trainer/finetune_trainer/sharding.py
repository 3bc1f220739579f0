"""How the base model is spread over the processes, and what is kept whole on each of them.

The frozen base model is what is large, so only it is sharded, with FSDP2
(https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html). The adapter is about a hundredth of it: every
process keeps all of it, whatever the sharding. So its gradients are summed the same way everywhere, once a global
batch, and a checkpoint does not depend on how many processes wrote it.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from finetune_trainer.contract.spec import Sharding
from finetune_trainer.filling import Destination, fill_weights


def count_shares(sharding: Sharding, num_nodes: int, processes_per_node: int) -> int:
    """Return over how many processes one copy of the frozen model is spread.

    `full` spreads it over all, `hybrid` over those of a node, so that weights are only gathered over the fast links.
    """
    match sharding:
        case Sharding.REPLICATE:
            return 1
        case Sharding.FULL:
            return num_nodes * processes_per_node
        case Sharding.HYBRID:
            return processes_per_node
        case Sharding.AUTO:
            raise ValueError("sharding auto is resolved by prepare")


def make_mesh(sharding: Sharding, device_type: str, num_nodes: int, processes_per_node: int) -> DeviceMesh | None:
    """Return the processes that hold a shard of the model, or None where each process holds all of it.

    The mesh has one dimension where there is one copy of the model, and a second one, across nodes, where there are
    more. Neither is ever of one process: it would cost a group of NCCL and share nothing (a training whose mesh had
    two such dimensions hung once, see docs/LOG.md).
    """
    num_shares = count_shares(sharding, num_nodes, processes_per_node)
    num_copies = num_nodes * processes_per_node // num_shares
    if num_shares == 1:
        return None
    if num_copies == 1:
        return init_device_mesh(device_type, (num_shares,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (num_copies, num_shares), mesh_dim_names=("replicate", "shard"))


def shard_model(model: nn.Module, mesh: DeviceMesh | None) -> None:
    """Shard the frozen parameters of a model on the meta device, a layer at a time; the adapter stays whole."""
    if mesh is None:
        return
    adapter = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for layer in model.get_submodule("layers").children():
        fully_shard(layer, mesh=mesh, ignored_params=adapter)
    fully_shard(model, mesh=mesh, ignored_params=adapter)


@torch.no_grad()
def fill_model(model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]], device: torch.device) -> None:
    """Give a model on the meta device memory on `device`, and copy each weight, or this process' shard of it, there.

    The adapter's values are left to `lora.initialise_adapters`.

    Raises:
        TrainerError: as `fill_weights`.
    """
    model.to_empty(device=device)
    frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    fill_weights({name: _destination(parameter) for name, parameter in frozen.items()}, weights)


def _destination(parameter: torch.Tensor) -> Destination:
    if not isinstance(parameter, DTensor):
        return Destination.of(parameter)
    sharded = parameter

    def fill(weight: torch.Tensor) -> torch.Tensor:
        # src_data_rank=None: each process cuts its shard out of the tensor it has read, nothing is sent.
        shard = distribute_tensor(weight, sharded.device_mesh, sharded.placements, src_data_rank=None)
        return sharded.to_local().copy_(shard.to_local())

    return Destination(parameter.shape, fill)


class AdapterGradients:
    """The gradients of the adapter in one buffer: one reduction, one norm, one fill with zeros a step.

    Args:
        parameters: of the adapter; their `grad` becomes a view of the buffer, in which backward passes add up.

    Attributes:
        buffer: all gradients, fp32 [number of adapter parameters].
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        first = self._parameters[0]
        size = sum(parameter.numel() for parameter in self._parameters)
        self.buffer = torch.zeros(size, dtype=first.dtype, device=first.device)
        for parameter, view in zip(self._parameters, self._views(), strict=True):
            parameter.grad = view

    def _views(self) -> Iterator[torch.Tensor]:
        start = 0
        for parameter in self._parameters:
            yield self.buffer[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def zero(self) -> None:
        """Forget the gradients of the last step."""
        self.buffer.zero_()

    def clip(self, max_norm: float) -> torch.Tensor:
        """Scale the gradients down to `max_norm` where they are longer, and return the norm they had, a scalar."""
        norm: torch.Tensor = torch.linalg.vector_norm(self.buffer)
        # As torch.nn.utils.clip_grad_norm_: no branch, so the GPU is not waited for.
        self.buffer.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm
