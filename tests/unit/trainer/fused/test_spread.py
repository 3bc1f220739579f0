"""Weights that are spread over processes, of which there is one here; tests/integration/test_train_gang.py has more."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from finetune_trainer.architecture import read_shape
from finetune_trainer.clock import StepClock
from finetune_trainer.contract.spec import Lora
from finetune_trainer.exchange import Exchange
from finetune_trainer.filling import fill_weights
from finetune_trainer.fused.decoder import FusedDecoder
from finetune_trainer.fused.frozen.fp8 import Fp8, Fp8Fast
from finetune_trainer.fused.frozen.nf4 import Nf4
from finetune_trainer.fused.frozen.weight import FrozenFormat
from finetune_trainer.fused.frozen.whole import Whole
from finetune_trainer.fused.spread import SpreadLayers
from finetune_trainer.lora import adapter_parameters
from finetune_trainer.model import read_weights
from tests.tiny_run import write_tiny_model
from tests.unit.trainer.fused.test_decoder import CPU, Result, packed_batch, randomise, result_of

NUM_LAYERS = 5
FORMATS: dict[str, type[FrozenFormat]] = {"whole": Whole, "fp8": Fp8, "fp8-fast": Fp8Fast, "nf4": Nf4}
LORA = Lora(rank=4, alpha=8, dropout=0.1)


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[Exchange]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield Exchange(dist.group.WORLD, CPU)
    dist.destroy_process_group()


def decoder(directory: Path, frozen: FrozenFormat, recomputes: bool, spread: SpreadLayers | None) -> FusedDecoder:
    shape = read_shape(directory)
    model = FusedDecoder(shape, LORA, torch.float32, CPU, 64, recomputes, frozen, spread)
    fill_weights(model.destinations(), read_weights(directory, shape))
    return model


def two_steps(model: FusedDecoder) -> list[Result]:
    """Two micro-batches of a step each, between them an update of the adapter."""
    results = []
    randomise(model)
    for _ in range(2):
        model.begin_step()
        torch.manual_seed(11)
        results.append(result_of(model, packed_batch(), times=2))
        with torch.no_grad():
            for parameter in adapter_parameters(model).values():
                parameter.mul_(0.5)
    return results


@pytest.mark.parametrize("recomputes", [False, True], ids=["activations kept", "computed again"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_spread_model_computes_what_a_whole_one_does_bit_for_bit(
    tmp_path: Path, exchange: Exchange, name: str, recomputes: bool
) -> None:
    write_tiny_model(tmp_path / "model", num_hidden_layers=NUM_LAYERS, hidden_size=64, intermediate_size=128)
    expected = two_steps(decoder(tmp_path / "model", FORMATS[name](torch.float32, CPU), recomputes, None))
    spread = SpreadLayers(exchange, NUM_LAYERS, StepClock(CPU), smallest_bytes=1024)
    model = decoder(tmp_path / "model", FORMATS[name](torch.float32, CPU), recomputes, spread)
    spread.publish()
    for found, wanted in zip(two_steps(model), expected, strict=True):
        assert found.loss == wanted.loss
        assert found.gradients.keys() == wanted.gradients.keys()
        assert all(torch.equal(found.gradients[key], gradient) for key, gradient in wanted.gradients.items())


def test_only_two_layers_are_whole_at_once(exchange: Exchange) -> None:
    spread = SpreadLayers(exchange, NUM_LAYERS, StepClock(CPU), smallest_bytes=1)
    places = {spread.memory_of(number)((16, 16), torch.float32).data_ptr() for number in range(NUM_LAYERS)}
    assert len(places) == 2


def test_what_is_small_stays_with_each_process(exchange: Exchange) -> None:
    spread = SpreadLayers(exchange, NUM_LAYERS, StepClock(CPU), smallest_bytes=1025)
    # All of them are kept until the end: what is freed gives its place to the next.
    weights = [spread.memory_of(number)((16, 16), torch.float32) for number in range(NUM_LAYERS)]
    assert len({weight.data_ptr() for weight in weights}) == NUM_LAYERS
