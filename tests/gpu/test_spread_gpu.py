"""A model that is spread over two GPUs."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from finetune_trainer.architecture import read_shape
from finetune_trainer.clock import StepClock
from finetune_trainer.contract.spec import Lora, Sharding
from finetune_trainer.data.batch import make_batch
from finetune_trainer.exchange import make_exchange
from finetune_trainer.filling import fill_weights
from finetune_trainer.fused.decoder import FusedDecoder
from finetune_trainer.fused.frozen.fp8 import Fp8
from finetune_trainer.fused.frozen.nf4 import Nf4
from finetune_trainer.fused.frozen.weight import FrozenFormat
from finetune_trainer.fused.frozen.whole import Whole
from finetune_trainer.fused.spread import SpreadLayers
from finetune_trainer.gang import Place
from finetune_trainer.lora import adapter_parameters, initialise_adapters
from finetune_trainer.model import read_weights
from tests.tiny_run import random_sequence, write_tiny_model

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

NUM_LAYERS, NUM_GPUS = 5, 2
FORMATS: dict[str, type[FrozenFormat]] = {"whole": Whole, "fp8": Fp8, "nf4": Nf4}


def gradients_of_two_steps(
    directory: Path, name: str, spread: SpreadLayers | None, device: torch.device
) -> list[bytes]:
    shape = read_shape(directory)
    frozen = FORMATS[name](torch.bfloat16, device)
    model = FusedDecoder(shape, Lora(rank=8, alpha=16, dropout=0), torch.bfloat16, device, 256, False, frozen, spread)
    fill_weights(model.destinations(), read_weights(directory, shape, device))
    if spread is not None:
        spread.publish()
    initialise_adapters(model, 0)
    found = []
    for step in range(2):
        model.begin_step()
        for row in range(3):
            model(make_batch([random_sequence(3 * step + row, (256,))]).to(device)).backward()
        for parameter in adapter_parameters(model).values():
            assert parameter.grad is not None
            found.append(parameter.grad.cpu().numpy().tobytes())
            with torch.no_grad():
                parameter.sub_(parameter.grad.sign(), alpha=0.01)
            parameter.grad = None
    return found


def compare(rank: int, directory: Path, store: Path) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", f"file://{store}", rank=rank, world_size=NUM_GPUS, device_id=device)
    place = Place(rank, rank, NUM_GPUS, NUM_GPUS, device)
    for name in FORMATS:
        expected = gradients_of_two_steps(directory, name, None, device)
        exchange = make_exchange(Sharding.FULL, place)
        spread = SpreadLayers(exchange, NUM_LAYERS, StepClock(device), smallest_bytes=1 << 14)
        assert gradients_of_two_steps(directory, name, spread, device) == expected, name
    dist.destroy_process_group()


def test_a_model_that_is_spread_over_two_gpus_has_the_very_gradients_of_a_whole_one(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_hidden_layers": NUM_LAYERS}
    write_tiny_model(tmp_path / "model", **sizes)
    torch.multiprocessing.spawn(compare, (tmp_path / "model", tmp_path / "store"), nprocs=NUM_GPUS)
