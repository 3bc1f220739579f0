"""The fused step on a real GPU, in bf16, fp8 and NF4, against the plain one in fp32; its dropout against a CPU's."""

from collections.abc import Callable

import pytest
import torch

from finetune_trainer.architecture import Family, ModelShape
from finetune_trainer.contract.spec import Lora, LoraTarget
from finetune_trainer.data.batch import Batch, make_batch
from finetune_trainer.filling import fill_weights
from finetune_trainer.fused import attention, layer
from finetune_trainer.fused.decoder import FusedDecoder
from finetune_trainer.fused.frozen.fp8 import Fp8, Fp8Fast, Layout
from finetune_trainer.fused.frozen.nf4 import Nf4
from finetune_trainer.fused.frozen.weight import FrozenFormat
from finetune_trainer.fused.frozen.whole import Whole
from finetune_trainer.kernels import fallback
from finetune_trainer.kernels.fallback import told_fallbacks
from finetune_trainer.kernels.on_gpu import attention as own_kernel
from finetune_trainer.lora import adapter_parameters, add_adapters
from finetune_trainer.model import build_model
from finetune_trainer.sharding import fill_model
from tests.tiny_run import VOCABULARY_SIZE, random_sequence

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
LENGTH = 512
# What rounding activations and gradients to bf16 costs: error of all adapters' gradients together, and of the worst.
ALL_TOLERANCE, WORST_TOLERANCE = 0.02, 0.05

Gradients = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _small_models_take_the_kernels_of_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "MIN_SIZE_AT_THE_GATE", 0)


def shape(family: Family = Family.LLAMA) -> ModelShape:
    """Two layers, wide enough that sums of bf16 products are as long as in a real model."""
    return ModelShape(
        family=family,
        vocab_size=VOCABULARY_SIZE,
        hidden_size=1024,
        num_layers=2,
        num_heads=16,
        num_kv_heads=4,
        head_dim=64,
        intermediate_size=2816,
        max_positions=LENGTH,
        rope_theta=10000.0,
        rope_scaling=None,
        norm_epsilon=1e-5,
        tied_embeddings=False,
        attention_bias=family is Family.QWEN2,
    )


def random_weights(model_shape: ModelShape) -> dict[str, torch.Tensor]:
    """Weights by torchtune's names, of values that bf16 holds exactly."""
    generator = torch.Generator().manual_seed(1)
    places = FusedDecoder(model_shape, Lora(), torch.bfloat16, torch.device("meta"), 1, False).destinations()
    return {
        name: (torch.randn(place.shape, generator=generator) * 0.03 + (len(place.shape) == 1)).bfloat16()
        for name, place in places.items()
    }


def whole_rows() -> Batch:
    return make_batch([random_sequence(seed, (LENGTH,)) for seed in range(2)])


def packed_documents() -> Batch:
    return make_batch([random_sequence(2, (100, 37, 300, 75)), random_sequence(3, (256, 200))], length_multiple=LENGTH)


def odd_rows() -> Batch:
    return make_batch([random_sequence(4, (200,)), random_sequence(5, (77,))], length_multiple=8)


def fused(
    model_shape: ModelShape,
    lora: Lora,
    device: torch.device,
    *,
    recomputes: bool = False,
    frozen: type[FrozenFormat] = Whole,
    embedding_on_host: bool = False,
) -> FusedDecoder:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = FusedDecoder(
        model_shape,
        lora,
        dtype,
        device,
        LENGTH,
        recomputes,
        frozen(dtype, device),
        embedding_on_host=embedding_on_host,
    )
    fill_weights(model.destinations(), random_weights(model_shape).items())
    randomise(model)
    model.begin_step()
    return model


def plain_in_fp32(model_shape: ModelShape, lora: Lora) -> torch.nn.Module:
    model = build_model(model_shape, torch.float32, LENGTH, checkpoint_activations=False)
    add_adapters(model, lora)
    fill_model(model, random_weights(model_shape).items(), CPU)
    model.fill_rotary_cache(CPU)
    randomise(model)
    return model


def randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, parameter in sorted(adapter_parameters(model).items()):
            parameter.copy_((torch.randn(parameter.shape, generator=generator) * 0.03).bfloat16())


def loss_and_gradients(model: torch.nn.Module, batch: Batch, device: torch.device) -> tuple[float, Gradients]:
    torch.manual_seed(5)  # of the dropout
    loss = model(batch.to(device))
    (loss / len(batch.targets)).backward()
    gradients = {name: parameter.grad.cpu() for name, parameter in adapter_parameters(model).items()}
    return loss.item(), gradients


def gradient_errors(ours: Gradients, expected: Gradients) -> tuple[float, float]:
    """The error of all adapters' gradients together, and of the worst of them."""
    errors = {name: (ours[name] - gradient).norm().item() for name, gradient in expected.items()}
    norms = {name: gradient.norm().item() for name, gradient in expected.items()}
    total = sum(error**2 for error in errors.values()) ** 0.5 / sum(norm**2 for norm in norms.values()) ** 0.5
    worst = max(errors[name] / norms[name] for name in errors)
    print(f"error of all gradients {total:.4f}, of the worst {worst:.4f}")
    return total, worst


def assert_close(ours: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    assert ours[0] == pytest.approx(expected[0], rel=5e-3)
    total, worst = gradient_errors(ours[1], expected[1])
    assert total < ALL_TOLERANCE
    assert worst < WORST_TOLERANCE


ALL_LINEARS = Lora(rank=64, alpha=128, dropout=0)
BATCHES = {"whole rows": whole_rows, "packed documents": packed_documents, "rows of an odd length": odd_rows}


@pytest.mark.parametrize("what", ["long documents", "attend_in_documents", "attend_in_documents_backward"])
def test_flash_attention_has_the_documents_that_our_kernel_cannot_have(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """They are too long for it, or it cannot be compiled, which somebody is told."""
    monkeypatch.setattr(fallback, "_failed", {})
    if what == "long documents":
        monkeypatch.setattr(attention, "SHORT_DOCUMENT_TOKENS", 50)
    else:
        monkeypatch.setattr(own_kernel, what, refuse_to_compile)
    expected = loss_and_gradients(plain_in_fp32(shape(), ALL_LINEARS), packed_documents(), CPU)
    assert_close(loss_and_gradients(fused(shape(), ALL_LINEARS, GPU), packed_documents(), GPU), expected)
    assert list(told_fallbacks()) == ([] if what == "long documents" else [what])


def refuse_to_compile(*_: torch.Tensor) -> None:
    raise RuntimeError(f"{fallback.NO_COMPILER}.")


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_loss_and_gradients_are_those_of_fp32(batch: Callable[[], Batch]) -> None:
    expected = loss_and_gradients(plain_in_fp32(shape(), ALL_LINEARS), batch(), CPU)
    assert_close(loss_and_gradients(fused(shape(), ALL_LINEARS, GPU), batch(), GPU), expected)


def test_biases_and_halves_that_turn_are_those_of_fp32() -> None:
    lora = Lora(rank=8, alpha=16, dropout=0, targets=(LoraTarget.Q_PROJ, LoraTarget.V_PROJ))
    expected = loss_and_gradients(plain_in_fp32(shape(Family.QWEN2), lora), whole_rows(), CPU)
    assert_close(loss_and_gradients(fused(shape(Family.QWEN2), lora, GPU), whole_rows(), GPU), expected)


def test_a_gpu_drops_what_a_cpu_drops() -> None:
    lora = Lora(rank=16, alpha=32, dropout=0.2)
    expected = loss_and_gradients(fused(shape(), lora, CPU), whole_rows(), CPU)
    assert_close(loss_and_gradients(fused(shape(), lora, GPU), whole_rows(), GPU), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_that_are_computed_again_are_the_same(dropout: float) -> None:
    lora = Lora(rank=16, alpha=32, dropout=dropout)
    kept = loss_and_gradients(fused(shape(), lora, GPU), packed_documents(), GPU)
    again = loss_and_gradients(fused(shape(), lora, GPU, recomputes=True), packed_documents(), GPU)
    assert again[0] == kept[0]
    assert_close(again, kept)


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_in_nf4_loss_and_gradients_are_those_of_the_rounded_weights(batch: Callable[[], Batch]) -> None:
    expected = loss_and_gradients(fused(shape(), ALL_LINEARS, CPU, frozen=Nf4), batch(), CPU)
    assert_close(loss_and_gradients(fused(shape(), ALL_LINEARS, GPU, frozen=Nf4), batch(), GPU), expected)


@pytest.mark.parametrize("frozen", [Fp8, Fp8Fast], ids=["fp8", "fp8-fast"])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_in_fp8_gradients_lose_what_they_lose_on_a_cpu(batch: Callable[[], Batch], frozen: type[FrozenFormat]) -> None:
    """Where fp8 rounds to is chance, how far is not: as the twins do, which compute all else in fp32."""
    exact = loss_and_gradients(plain_in_fp32(shape(), ALL_LINEARS), batch(), CPU)
    on_cpu = loss_and_gradients(fused(shape(), ALL_LINEARS, CPU, frozen=frozen), batch(), CPU)
    on_gpu = loss_and_gradients(fused(shape(), ALL_LINEARS, GPU, frozen=frozen), batch(), GPU)
    assert on_gpu[0] == pytest.approx(exact[0], rel=5e-3)
    unavoidable = gradient_errors(on_cpu[1], exact[1])
    found = gradient_errors(on_gpu[1], exact[1])
    assert found[0] < 1.1 * unavoidable[0] + ALL_TOLERANCE
    assert found[1] < 1.2 * unavoidable[1] + WORST_TOLERANCE


def test_rows_that_are_rounded_where_they_are_computed_have_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    there = loss_and_gradients(fused(shape(), ALL_LINEARS, GPU, frozen=Fp8Fast), whole_rows(), GPU)
    monkeypatch.setattr(Layout, "new_rounded", lambda *_: None)
    later = loss_and_gradients(fused(shape(), ALL_LINEARS, GPU, frozen=Fp8Fast), whole_rows(), GPU)
    assert there[0] == later[0]
    # Attention's gradients on a GPU are sums in no fixed order, and fp8 makes one step of many of them.
    assert gradient_errors(there[1], later[1])[0] < ALL_TOLERANCE


def test_in_fp8_an_adapter_far_larger_than_the_weights_does_not_clip() -> None:
    lora = Lora(rank=16, alpha=16, dropout=0)
    results = []
    for frozen in (Whole, Fp8Fast):
        model = fused(shape(), lora, GPU, frozen=frozen)
        with torch.no_grad():
            for name, parameter in adapter_parameters(model).items():
                parameter.mul_(1000.0 if name.endswith("lora_b") else 1.0)
        model.begin_step()
        results.append(loss_and_gradients(model, whole_rows(), GPU))
    assert results[1][0] == pytest.approx(results[0][0], rel=2e-2)


def test_embeddings_on_the_host_change_nothing() -> None:
    results = [
        loss_and_gradients(fused(shape(), ALL_LINEARS, GPU, frozen=Nf4, embedding_on_host=on_host), whole_rows(), GPU)
        for on_host in (False, True)
    ]
    assert results[0][0] == results[1][0]


def test_a_feed_forward_in_parts_has_the_gradients_of_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lora = Lora(rank=16, alpha=32, dropout=0.1)
    whole = loss_and_gradients(fused(shape(), lora, GPU), whole_rows(), GPU)
    monkeypatch.setattr(layer, "FEED_FORWARD_TOKENS", 384)
    assert_close(loss_and_gradients(fused(shape(), lora, GPU, recomputes=True), whole_rows(), GPU), whole)


def test_a_small_models_gate_without_sums_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    with_sums = loss_and_gradients(fused(shape(), ALL_LINEARS, GPU), whole_rows(), GPU)
    monkeypatch.setattr(layer, "MIN_SIZE_AT_THE_GATE", 4096)
    assert_close(loss_and_gradients(fused(shape(), ALL_LINEARS, GPU), whole_rows(), GPU), with_sums)


def test_micro_batches_add_up_in_fp32() -> None:
    model = fused(shape(), ALL_LINEARS, GPU)
    once = loss_and_gradients(model, whole_rows(), GPU)[1]
    twice = loss_and_gradients(model, whole_rows(), GPU)[1]
    for name, gradient in twice.items():
        torch.testing.assert_close(gradient, 2 * once[name], rtol=1e-5, atol=1e-7)
