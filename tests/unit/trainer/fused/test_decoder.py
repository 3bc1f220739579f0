"""The fused step against the plain one, which is held against transformers and PEFT."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_trainer.architecture import read_shape
from finetune_trainer.contract.spec import Lora, LoraTarget
from finetune_trainer.data.batch import Batch, make_batch
from finetune_trainer.filling import fill_weights
from finetune_trainer.fused import layer
from finetune_trainer.fused.decoder import FusedDecoder
from finetune_trainer.fused.frozen.fp8 import Fp8, Fp8Fast, Layout
from finetune_trainer.fused.frozen.nf4 import Nf4
from finetune_trainer.fused.frozen.weight import FrozenFormat, Operand
from finetune_trainer.fused.linear import FusedLinear
from finetune_trainer.lora import LoraLinear, adapter_parameters, add_adapters, initialise_adapters
from finetune_trainer.model import build_model, read_weights
from finetune_trainer.sharding import fill_model
from tests.tiny_run import all_trained, random_sequence, write_tiny_model

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


@pytest.fixture(autouse=True)
def _small_models_take_the_kernels_of_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "MIN_SIZE_AT_THE_GATE", 0)


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


def fused_decoder(
    directory: Path, lora: Lora, checkpoint_activations: bool = False, frozen: FrozenFormat | None = None
) -> FusedDecoder:
    shape = read_shape(directory)
    model = FusedDecoder(shape, lora, torch.float32, CPU, 64, checkpoint_activations, frozen)
    fill_weights(model.destinations(), read_weights(directory, shape))
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


def plain_result(
    directory: Path,
    lora: Lora,
    batch: Batch,
    change: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
    with_adapter: bool = True,
) -> Result:
    shape = read_shape(directory)
    model = build_model(shape, torch.float32, 64, checkpoint_activations=False)
    add_adapters(model, lora)
    weights = read_weights(directory, shape)
    changed = weights if change is None else ((name, change(name, weight)) for name, weight in weights)
    fill_model(model, changed, CPU)
    model.fill_rotary_cache(CPU)
    if with_adapter:
        randomise(model)
    else:
        initialise_adapters(model, 0)  # B is zero
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


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_feed_forward_in_parts_changes_nothing(
    tmp_path: Path, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(tmp_path)
    results = []
    for tokens_at_once in (4096, 7):
        monkeypatch.setattr(layer, "FEED_FORWARD_TOKENS", tokens_at_once)
        model = fused_decoder(tmp_path, Lora(rank=4, alpha=8, dropout=dropout), checkpoint_activations=True)
        torch.manual_seed(11)
        results.append(result_of(model, packed_batch()))
    assert_same(results[1], results[0], tolerance=1e-5)


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


@pytest.mark.parametrize("recomputes", [False, True], ids=["activations kept", "computed again"])
def test_behind_its_attention_the_last_block_computes_trained_tokens_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recomputes: bool
) -> None:
    write_tiny_model(tmp_path)
    model = fused_decoder(tmp_path, ALL_LINEARS, recomputes)
    rows: dict[str, list[int]] = {"forward": [], "backward": []}
    for way, found in rows.items():
        compute = getattr(FusedLinear, way)

        def counted(linear: FusedLinear, operand: Operand, *others: Any, found: Any = found, compute: Any = compute):  # type: ignore[no-untyped-def]
            if linear in [block.down for block in model.blocks]:
                found.append(len(operand.joined))
            return compute(linear, operand, *others)

        monkeypatch.setattr(FusedLinear, way, counted)
    batch = packed_batch()
    some = result_of(model, batch)
    assert batch.tokens.numel() == 40
    assert len(batch.predicting) == 15
    assert rows == {"forward": [40, 15], "backward": [15, 40]}
    model.leaves_out_untrained = False
    assert_same(result_of(model, batch), some)
    assert rows["forward"][2:] == [40, 40]


def test_where_nearly_all_tokens_are_trained_the_last_block_computes_all(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    model = fused_decoder(tmp_path, ALL_LINEARS)
    tokens = list(range(20))
    assert model.inputs_of(all_trained(tokens)).needed is None
    assert model.inputs_of(all_trained(tokens, *[2] * 10)).needed is not None  # the first of a document is no target


def test_a_batch_without_targets_adds_nothing(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    result = result_of(fused_decoder(tmp_path, ALL_LINEARS), make_batch([None], length_multiple=8))
    assert result.loss == 0.0
    assert all(not gradient.any() for gradient in result.gradients.values())


# --- frozen weights in narrow formats ---------------------------------------------------------------------------------

NF4_QUANTILES = (
    *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)


def as_nf4_has_it(name: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight of a block rounded to NF4 number by number, as bitsandbytes' table has it; others stay as they are."""
    if not (name.startswith("layers.") and weight.dim() == 2):
        return weight
    blocks = weight.numpy().reshape(-1, 64)
    peaks = torch.from_numpy(np.abs(blocks).max(1)).bfloat16().float().numpy()[:, None]
    quantiles = np.array(NF4_QUANTILES, np.float32)
    nearest = np.abs(blocks[:, :, None] / peaks[:, :, None] - quantiles).argmin(-1)
    return torch.from_numpy((quantiles[nearest] * peaks).reshape(weight.shape))


@pytest.mark.parametrize("recomputes", [False, True], ids=["activations kept", "computed again"])
@pytest.mark.parametrize(("model_type", "settings"), MODELS.values(), ids=MODELS.keys())
def test_in_nf4_loss_and_gradients_are_those_of_the_rounded_weights(
    tmp_path: Path, model_type: str, settings: dict[str, Any], recomputes: bool
) -> None:
    write_tiny_model(tmp_path, model_type, **settings)
    expected = plain_result(tmp_path, ALL_LINEARS, packed_batch(), as_nf4_has_it)
    ours = fused_decoder(tmp_path, ALL_LINEARS, recomputes, Nf4(torch.float32, CPU))
    assert_same(result_of(ours, packed_batch()), expected, tolerance=1e-4)


def test_in_nf4_values_that_have_changed_are_used_from_the_next_step_on(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    model = fused_decoder(tmp_path, ALL_LINEARS, frozen=Nf4(torch.float32, CPU))
    with torch.no_grad():
        before = model(whole_rows()).item()
        for parameter in adapter_parameters(model).values():
            parameter.zero_()
        model.begin_step()
        after = model(whole_rows()).item()
    assert before != pytest.approx(after, rel=1e-4)
    expected = plain_result(tmp_path, ALL_LINEARS, whole_rows(), as_nf4_has_it, with_adapter=False)
    assert after == pytest.approx(expected.loss, rel=1e-5)


def rounded_to_e4m3(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix as fp8 has it, with the largest number of each row at 448."""
    scales = matrix.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 448
    return (matrix / scales).to(torch.float8_e4m3fn).float() * scales


class Fp8Linear(torch.autograd.Function):
    """A frozen linear layer in fp8: every factor of its two products is rounded along what is summed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return rounded_to_e4m3(x) @ rounded_to_e4m3(weight).T

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,) = ctx.saved_tensors
        return rounded_to_e4m3(gradient) @ rounded_to_e4m3(weight.T.contiguous()).T, None


def forward_in_fp8(self: LoraLinear, x: torch.Tensor) -> torch.Tensor:
    """`LoraLinear.forward`, its frozen product in fp8."""
    frozen: torch.Tensor = Fp8Linear.apply(x, self.weight)  # type: ignore[no-untyped-call]
    low_rank = torch.nn.functional.linear(x, self.lora_a) * self.scale
    adapted = frozen + torch.nn.functional.linear(low_rank, self.lora_b)
    return adapted if self.bias is None else adapted + self.bias


@pytest.mark.parametrize(("model_type", "settings"), MODELS.values(), ids=MODELS.keys())
def test_in_fp8_gradients_lose_what_rounding_the_frozen_products_costs_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, settings: dict[str, Any]
) -> None:
    write_tiny_model(tmp_path, model_type, **settings)
    exact = plain_result(tmp_path, ALL_LINEARS, packed_batch())
    ours = result_of(fused_decoder(tmp_path, ALL_LINEARS, frozen=Fp8Fast(torch.float32, CPU)), packed_batch())
    monkeypatch.setattr(LoraLinear, "forward", forward_in_fp8)
    rounded = plain_result(tmp_path, ALL_LINEARS, packed_batch())
    # Which way numbers are rounded is chance, and the models are small: errors of the same size differ by a third.
    assert 0 < whole_error(ours, exact) < 1.5 * whole_error(rounded, exact)
    assert ours.loss == pytest.approx(exact.loss, rel=0.02)


def whole_error(ours: Result, expected: Result) -> float:
    """The error of all adapters' gradients together, as a share of their length."""
    errors = sum(float((ours.gradients[name] - found).norm() ** 2) for name, found in expected.gradients.items())
    return float((errors / sum(float(found.norm() ** 2) for found in expected.gradients.values())) ** 0.5)


@pytest.mark.parametrize(("model_type", "settings"), MODELS.values(), ids=MODELS.keys())
def test_with_gradients_in_fp8_the_loss_is_exact_and_gradients_are_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, settings: dict[str, Any]
) -> None:
    write_tiny_model(tmp_path, model_type, **settings)
    exact = plain_result(tmp_path, ALL_LINEARS, packed_batch())
    ours = result_of(fused_decoder(tmp_path, ALL_LINEARS, frozen=Fp8(torch.float32, CPU)), packed_batch())
    assert ours.loss == pytest.approx(exact.loss, rel=1e-5)
    monkeypatch.setattr(LoraLinear, "forward", forward_in_fp8)
    rounded = plain_result(tmp_path, ALL_LINEARS, packed_batch())
    assert 0 < whole_error(ours, exact) < whole_error(rounded, exact)


@pytest.mark.parametrize("lora", [ALL_LINEARS, Lora(rank=4, alpha=8, dropout=0.5)], ids=["all linears", "dropout"])
@pytest.mark.parametrize("recomputes", [False, True], ids=["activations kept", "computed again"])
@pytest.mark.parametrize("frozen", [Fp8, Fp8Fast], ids=["fp8", "fp8-fast"])
def test_rows_that_are_rounded_where_they_are_computed_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: type[FrozenFormat], recomputes: bool, lora: Lora
) -> None:
    write_tiny_model(tmp_path)
    results = []
    for change in (lambda: None, lambda: monkeypatch.setattr(Layout, "new_rounded", lambda *_: None)):
        change()
        torch.manual_seed(0)  # of the dropout
        results.append(result_of(fused_decoder(tmp_path, lora, recomputes, frozen(torch.float32, CPU)), packed_batch()))
    there, later = results
    assert there.loss == later.loss
    assert all(torch.equal(gradient, later.gradients[name]) for name, gradient in there.gradients.items())


@pytest.mark.parametrize(("num_layers", "exact"), [(5, [0, 4]), (30, [0, 29]), (32, [0, 31])])
def test_fp8_fast_has_an_exact_forward_pass_in_the_first_layer_and_in_the_last(
    num_layers: int, exact: list[int]
) -> None:
    """What keeps 300 steps of SmolLM2 within 1 % of bf16's loss: docs/LOG.md, 2026-11-28."""
    frozen = Fp8Fast(torch.float32, CPU)
    found = [number for number in range(num_layers) if isinstance(frozen.of_layer(number, num_layers), Fp8)]
    assert found == exact
    assert [isinstance(frozen.of_layer(number, 2), Fp8Fast) for number in range(2)] == [True, True]
