"""The fused step against the plain one, which is held against transformers and PEFT."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_trainer.architecture import read_shape
from finetune_trainer.contract.spec import Lora, LoraTarget
from finetune_trainer.data.batch import Batch, make_batch
from finetune_trainer.fused.decoder import FusedDecoder
from finetune_trainer.lora import adapter_parameters, add_adapters
from finetune_trainer.model import build_model, read_weights
from finetune_trainer.sharding import fill_model, fill_weights
from tests.tiny_run import random_sequence, write_tiny_model

CPU = torch.device("cpu")
ALL_LINEARS = Lora(rank=4, alpha=8, dropout=0)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama 3.2, tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "qwen 2.5, biases and halves that turn": ("qwen2", {"rope_theta": 1e6}),
    "mistral, heads wider than the hidden size": ("mistral", {"head_dim": 16, "sliding_window": None}),
}
ADAPTERS = {
    "all linears": ALL_LINEARS,
    "queries and values": Lora(rank=3, alpha=6, dropout=0, targets=(LoraTarget.Q_PROJ, LoraTarget.V_PROJ)),
    "the feed-forward's up and down": Lora(
        rank=80, alpha=1, dropout=0, targets=(LoraTarget.UP_PROJ, LoraTarget.DOWN_PROJ)
    ),
}


@dataclass(frozen=True)
class Result:
    """The loss of a batch, and the gradients of the adapter by name."""

    loss: float
    gradients: dict[str, torch.Tensor]


def packed_batch() -> Batch:
    """Two rows; the first of three documents, the second of one and padding."""
    return make_batch([random_sequence(0, (9, 4, 7)), random_sequence(1, (13,))])


def whole_rows() -> Batch:
    return make_batch([random_sequence(2, (12,)), random_sequence(3, (12,))])


def randomise(model: torch.nn.Module) -> None:
    """An adapter as training would leave it: nothing is zero."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in sorted(adapter_parameters(model).items()):
            assert parameter.numel(), name
            parameter.copy_(torch.randn_like(parameter) * 0.1)


def fused_decoder(directory: Path, lora: Lora, checkpoint_activations: bool = False) -> FusedDecoder:
    shape = read_shape(directory)
    model = FusedDecoder(shape, lora, torch.float32, CPU, 64, checkpoint_activations)
    fill_weights(model.frozen(), read_weights(directory, shape))
    randomise(model)
    model.begin_step()
    return model


def result_of(model: torch.nn.Module, batch: Batch, times: int = 1) -> Result:
    for parameter in adapter_parameters(model).values():
        parameter.grad = None
    for _ in range(times):
        loss = model(batch)
        (loss / 10).backward()
    gradients = {name: parameter.grad for name, parameter in adapter_parameters(model).items()}
    return Result(loss.item(), {name: gradient for name, gradient in gradients.items() if gradient is not None})


def plain_result(directory: Path, lora: Lora, batch: Batch) -> Result:
    shape = read_shape(directory)
    model = build_model(shape, torch.float32, 64, checkpoint_activations=False)
    add_adapters(model, lora)
    fill_model(model, read_weights(directory, shape), CPU)
    model.fill_rotary_cache(CPU)
    randomise(model)
    return result_of(model, batch)


def assert_same(ours: Result, expected: Result, tolerance: float = 1e-5) -> None:
    assert ours.loss == pytest.approx(expected.loss, rel=tolerance)
    assert ours.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        assert gradient.norm() > 1e-3, name
        assert (ours.gradients[name] - gradient).norm() < tolerance * gradient.norm(), name


@pytest.mark.parametrize("batch", [packed_batch(), whole_rows()], ids=["packed documents", "whole rows"])
@pytest.mark.parametrize(("model_type", "settings"), MODELS.values(), ids=MODELS.keys())
def test_loss_and_gradients_are_those_of_the_plain_step(
    tmp_path: Path, model_type: str, settings: dict[str, Any], batch: Batch
) -> None:
    write_tiny_model(tmp_path, model_type, **settings)
    expected = plain_result(tmp_path, ALL_LINEARS, batch)
    assert_same(result_of(fused_decoder(tmp_path, ALL_LINEARS), batch), expected)


@pytest.mark.parametrize("lora", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_any_layers_may_have_an_adapter_of_any_rank(tmp_path: Path, lora: Lora) -> None:
    write_tiny_model(tmp_path)
    expected = plain_result(tmp_path, lora, packed_batch())
    assert_same(result_of(fused_decoder(tmp_path, lora), packed_batch()), expected)


def test_activations_that_are_computed_again_change_nothing(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    lora = Lora(rank=4, alpha=8, dropout=0.1)
    results = []
    for recomputes in (False, True):
        model = fused_decoder(tmp_path, lora, checkpoint_activations=recomputes)
        torch.manual_seed(11)
        results.append(result_of(model, packed_batch()))
    assert results[1].loss == results[0].loss
    assert all(torch.equal(results[1].gradients[name], found) for name, found in results[0].gradients.items())


def test_gradients_of_micro_batches_add_up(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    model = fused_decoder(tmp_path, ALL_LINEARS)
    once = result_of(model, whole_rows())
    thrice = result_of(model, whole_rows(), times=3)
    for name, gradient in once.gradients.items():
        torch.testing.assert_close(thrice.gradients[name], 3 * gradient)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_tell_how_the_loss_changes(tmp_path: Path, dropout: float) -> None:
    """With dropout there is no plain step to compare with: it would drop other values."""
    write_tiny_model(tmp_path)
    model = fused_decoder(tmp_path, Lora(rank=4, alpha=8, dropout=dropout))
    torch.manual_seed(11)
    gradients = result_of(model, packed_batch()).gradients
    length = 2e-3
    direction = {name: gradient / gradient.norm() for name, gradient in gradients.items()}
    expected = sum(float((gradients[name] * direction[name]).sum()) for name in gradients)

    def loss_at(distance: float) -> float:
        with torch.no_grad():
            for name, parameter in adapter_parameters(model).items():
                parameter.add_(direction[name], alpha=distance)
            model.begin_step()
            torch.manual_seed(11)
            loss: float = model(packed_batch()).item() / 10  # as `result_of` divides it
            for name, parameter in adapter_parameters(model).items():
                parameter.sub_(direction[name], alpha=distance)
        return loss

    assert (loss_at(length) - loss_at(-length)) / (2 * length) == pytest.approx(expected, rel=2e-3)


def test_nothing_is_dropped_but_in_training(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    model = fused_decoder(tmp_path, Lora(rank=4, alpha=8, dropout=0.5))
    plain = plain_result(tmp_path, ALL_LINEARS, whole_rows())
    with torch.no_grad():
        assert model.train()(whole_rows()).item() != pytest.approx(plain.loss, rel=1e-4)
        assert model.eval()(whole_rows()).item() == pytest.approx(plain.loss, rel=1e-5)


def test_values_that_have_changed_are_used_from_the_next_step_on(tmp_path: Path) -> None:
    reference = write_tiny_model(tmp_path)
    model = fused_decoder(tmp_path, ALL_LINEARS)
    with torch.no_grad():
        before = model(whole_rows()).item()
        for parameter in adapter_parameters(model).values():
            parameter.zero_()
        model.begin_step()
        after = model(whole_rows()).item()
        tokens = torch.from_numpy(np.stack([random_sequence(seed, (12,)).tokens for seed in (2, 3)])).long()
        logits = reference(tokens).logits.flatten(0, 1)[whole_rows().predicting]
    assert before != pytest.approx(after, rel=1e-4)
    expected = torch.nn.functional.cross_entropy(logits, whole_rows().targets, reduction="sum")
    assert after == pytest.approx(expected.item(), rel=1e-5)  # transformers' loss of the base model


def test_a_batch_without_targets_adds_nothing(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    result = result_of(fused_decoder(tmp_path, ALL_LINEARS), make_batch([None], length_multiple=8))
    assert result.loss == 0.0
    assert all(not gradient.any() for gradient in result.gradients.values())
