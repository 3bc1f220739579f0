"""Passes that a GPU repeats as CUDA graphs, against the same passes launched kernel by kernel."""

from collections.abc import Callable

import pytest
import torch

from finetune_trainer.contract.spec import Lora
from finetune_trainer.data.batch import Batch, make_batch
from finetune_trainer.fused import layer
from finetune_trainer.fused.decoder import FusedDecoder, Inputs, Record
from finetune_trainer.fused.repeated import RepeatedPasses
from finetune_trainer.kernels import fallback
from finetune_trainer.kernels.fallback import told_fallbacks
from finetune_trainer.lora import adapter_parameters
from finetune_trainer.passes import LaunchedPasses, Passes
from finetune_trainer.sharding import AdapterGradients
from tests.gpu.test_fused_gpu import GPU, LENGTH, fused, shape
from tests.tiny_run import random_sequence

ADAPTERS = {
    "without dropout": Lora(rank=16, alpha=32, dropout=0),
    "with dropout": Lora(rank=16, alpha=32, dropout=0.2),
}
NUM_STEPS = 4


@pytest.fixture(autouse=True)
def _nothing_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_failed", {})
    monkeypatch.setattr(layer, "MIN_SIZE_AT_THE_GATE", 0)


def whole_rows(step: int) -> Batch:
    return make_batch([random_sequence(10 * step + row, (LENGTH,)) for row in range(2)])


def packed_documents(step: int) -> Batch:
    """Other documents in each step, and another number of them, all of one layout."""
    lengths = [(100, 37, 300, 75), (280, 20, 9, 9, 9), (300, 200), (257, 255)][step % 4]
    return make_batch(
        [random_sequence(10 * step, lengths), random_sequence(10 * step + 1, (256, 200 - step))], length_multiple=LENGTH
    )


def padded_rows(step: int) -> Batch:
    """Rows that are not full: as many tokens as ever, other targets."""
    return make_batch(
        [random_sequence(10 * step, (500 - 7 * step,)), random_sequence(10 * step + 1, (300,))], length_multiple=LENGTH
    )


BATCHES = {"whole rows": whole_rows, "packed documents": packed_documents, "rows that are not full": padded_rows}


def train(model: FusedDecoder, passes: Passes, batches: Callable[[int], Batch]) -> tuple[list[float], torch.Tensor]:
    """Do a few steps of two micro-batches; return the loss of each, and the gradients of the last."""
    gradients = AdapterGradients(adapter_parameters(model).values())
    losses = []
    for step in range(NUM_STEPS):
        gradients.zero()
        model.begin_step()
        loss = torch.zeros((), device=GPU)
        for micro in range(2):
            torch.manual_seed(2 * step + micro)
            loss += passes.add_gradients(batches(2 * step + micro).to(GPU), 700 + step)
        gradients.clip(1.0)
        with torch.no_grad():
            for parameter in adapter_parameters(model).values():
                parameter.sub_(parameter.grad, alpha=0.5)
        losses.append(loss.item())
    return losses, gradients.buffer.clone()


@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("lora", ADAPTERS.values(), ids=ADAPTERS.keys())
@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES.keys())
def test_repeated_passes_train_as_launched_ones(batches: Callable[[int], Batch], lora: Lora, recomputes: bool) -> None:
    models = [fused(shape(), lora, GPU, recomputes=recomputes).train() for _ in range(2)]
    models[0].leaves_out_untrained = False  # which other rows would be dropped values of
    expected, expected_gradients = train(models[0], LaunchedPasses(models[0]), batches)
    repeated = RepeatedPasses(models[1])
    losses, gradients = train(models[1], repeated, batches)
    assert repeated.num_graphs == 1
    assert not told_fallbacks()
    assert losses == pytest.approx(expected, rel=1e-3)  # sums of attention's backward pass have no order
    assert (gradients - expected_gradients).norm() < 0.02 * expected_gradients.norm()


def test_each_layout_has_graphs_of_its_own_and_they_do_not_disturb_each_other() -> None:
    def batches(step: int) -> Batch:
        return (whole_rows if step % 2 else packed_documents)(step)

    models = [fused(shape(), ADAPTERS["without dropout"], GPU).train() for _ in range(2)]
    expected, _ = train(models[0], LaunchedPasses(models[0]), batches)
    repeated = RepeatedPasses(models[1])
    losses, _ = train(models[1], repeated, batches)
    assert repeated.num_graphs == 2
    assert losses == pytest.approx(expected, rel=1e-3)


def test_where_a_graph_cannot_be_kept_the_training_goes_on_and_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [fused(shape(), ADAPTERS["with dropout"], GPU).train() for _ in range(2)]
    models[0].leaves_out_untrained = False
    expected, _ = train(models[0], LaunchedPasses(models[0]), whole_rows)
    compute = models[1].run_layers

    def wait_in_the_middle(inputs: Inputs, record: Record | None) -> torch.Tensor:
        normalised = compute(inputs, record)
        torch.cuda.synchronize()  # which no graph can hold
        return normalised

    monkeypatch.setattr(models[1], "run_layers", wait_in_the_middle)
    repeated = RepeatedPasses(models[1])
    losses, _ = train(models[1], repeated, whole_rows)
    assert repeated.num_graphs == 0
    assert losses == pytest.approx(expected, rel=1e-3)
    assert list(told_fallbacks()) == ["CUDA graph"]
    assert "launched anew, slower: " in told_fallbacks()["CUDA graph"]
