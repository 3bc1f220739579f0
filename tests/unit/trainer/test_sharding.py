from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from finetune_trainer.architecture import read_shape
from finetune_trainer.contract.spec import Lora, Sharding
from finetune_trainer.lora import adapter_parameters, add_adapters
from finetune_trainer.model import CausalDecoder, build_model, read_weights
from finetune_trainer.sharding import AdapterGradients, fill_model, make_mesh, shard_model
from tests.tiny_run import write_tiny_model

CPU = torch.device("cpu")
NUM_NODES, PER_NODE = 2, 2


@contextmanager
def rank_1_of_4() -> Iterator[None]:
    """Be one of four processes; the others never answer, so whatever needed an answer would come out wrong.

    NB: always the same one, as DTensor remembers where in a mesh a process stands.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=NUM_NODES * PER_NODE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sharded(directory: Path, sharding: Sharding) -> CausalDecoder:
    shape = read_shape(directory)
    model = build_model(shape, torch.float32, 64, checkpoint_activations=True)
    add_adapters(model, Lora(rank=2, alpha=4, dropout=0))
    shard_model(model, make_mesh(sharding, "cpu", NUM_NODES, PER_NODE))
    fill_model(model, read_weights(directory, shape), CPU)
    return model


def num_local_elements(model: nn.Module) -> int:
    frozen = (parameter for parameter in model.parameters() if not parameter.requires_grad)
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in frozen)


# All sizes of the tiny model are multiples of four, so that shares are equal.
SHARES = {
    "replicate keeps all of it": (Sharding.REPLICATE, 1),
    "hybrid keeps a share of the node's processes": (Sharding.HYBRID, PER_NODE),
    "full keeps a share of all processes": (Sharding.FULL, NUM_NODES * PER_NODE),
}


@pytest.mark.parametrize(("sharding", "num_shares"), SHARES.values(), ids=SHARES.keys())
def test_a_process_holds_its_share_of_the_base_model_and_the_whole_adapter(
    tmp_path: Path, sharding: Sharding, num_shares: int
) -> None:
    write_tiny_model(tmp_path)
    shape = read_shape(tmp_path)
    with rank_1_of_4():
        model = sharded(tmp_path, sharding)
        assert num_local_elements(model) == shape.num_parameters // num_shares
        adapter = adapter_parameters(model)
        assert sum(parameter.numel() for parameter in adapter.values()) == shape.num_adapter_parameters(
            Lora(rank=2, alpha=4)
        )
        assert not any(isinstance(parameter, DTensor) for parameter in adapter.values())


ROWS = {
    "full: the second of four quarters": (Sharding.FULL, slice(32, 64)),
    "hybrid: the second half, as on every node's second process": (Sharding.HYBRID, slice(64, 128)),
}


@pytest.mark.parametrize(("sharding", "rows"), ROWS.values(), ids=ROWS.keys())
def test_a_process_cuts_its_rows_out_of_the_files_without_asking_another(
    tmp_path: Path, sharding: Sharding, rows: slice
) -> None:
    reference = write_tiny_model(tmp_path)
    with rank_1_of_4():
        embedding = sharded(tmp_path, sharding).tok_embeddings.weight
        assert isinstance(embedding, DTensor)
        assert torch.equal(embedding.to_local(), reference.get_input_embeddings().weight[rows])


MESHES = {
    "hybrid on one node is full": (Sharding.HYBRID, 1, 4, (4,)),
    "hybrid has a dimension across nodes and one within": (Sharding.HYBRID, 2, 2, (2, 2)),
    "hybrid with one process a node shares with no other": (Sharding.HYBRID, 4, 1, None),
    "full has one dimension, whatever the nodes": (Sharding.FULL, 2, 2, (4,)),
}


@pytest.mark.parametrize(("sharding", "num_nodes", "per_node", "sizes"), MESHES.values(), ids=MESHES.keys())
def test_no_dimension_of_a_mesh_is_of_one_process(
    sharding: Sharding, num_nodes: int, per_node: int, sizes: tuple[int, ...] | None
) -> None:
    with rank_1_of_4():
        mesh = make_mesh(sharding, "cpu", num_nodes, per_node)
        assert (None if mesh is None else tuple(mesh.shape)) == sizes


@pytest.mark.parametrize("sharding", [Sharding.REPLICATE, Sharding.HYBRID, Sharding.FULL])
def test_a_process_alone_keeps_the_model_whole(sharding: Sharding) -> None:
    assert make_mesh(sharding, "cpu", 1, 1) is None


def test_auto_is_not_decided_here() -> None:
    with pytest.raises(ValueError, match="resolved by prepare"):
        make_mesh(Sharding.AUTO, "cpu", 1, 1)


@pytest.mark.parametrize("max_norm", [0.5, 100.0], ids=["longer gradients are cut", "shorter ones stay"])
def test_gradients_are_clipped_as_torch_clips_them(max_norm: float) -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5))]
    theirs = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5))]
    gradients = AdapterGradients(ours)
    for parameter, reference in zip(ours, theirs, strict=True):
        reference.grad = torch.randn_like(reference)
        (parameter * reference.grad).sum().backward()
    norm = gradients.clip(max_norm)
    assert norm.item() == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs, max_norm).item())
    for parameter, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad)


def test_backward_passes_add_up_in_one_buffer_until_it_is_zeroed() -> None:
    weight = nn.Parameter(torch.ones(2))
    gradients = AdapterGradients([weight])
    for _ in range(3):
        (weight * torch.tensor([1.0, 2.0])).sum().backward()
    assert gradients.buffer.tolist() == [3.0, 6.0]
    gradients.zero()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0.0, 0.0]
