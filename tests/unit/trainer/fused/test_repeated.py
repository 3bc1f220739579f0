"""Which batches share a graph, and what happens where none can be kept; tests/gpu has the graphs themselves."""

from pathlib import Path

import pytest
import torch

from finetune_trainer.architecture import read_shape
from finetune_trainer.contract.spec import Lora
from finetune_trainer.data.batch import Batch, make_batch
from finetune_trainer.filling import fill_weights
from finetune_trainer.fused.decoder import FusedDecoder
from finetune_trainer.fused.repeated import Layout, RepeatedPasses
from finetune_trainer.kernels import fallback
from finetune_trainer.kernels.fallback import told_fallbacks
from finetune_trainer.lora import adapter_parameters, initialise_adapters
from finetune_trainer.model import read_weights
from finetune_trainer.passes import LaunchedPasses
from tests.tiny_run import random_sequence, write_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_failed", {})


def packed(*rows: tuple[int, ...], length: int = 2048) -> Batch:
    return make_batch([random_sequence(seed, lengths) for seed, lengths in enumerate(rows)], length_multiple=length)


def test_rows_of_one_document_have_a_layout_without_documents() -> None:
    assert Layout.of(packed((2048,), (900,))) == Layout(rows=2, length=2048)


def test_numbers_of_documents_are_rounded_up_so_that_few_layouts_do() -> None:
    few, more = Layout.of(packed((1000, 700), (30,) * 12)), Layout.of(packed((1000, 701), (30,) * 13))
    # The padding of both rows is a document of each.
    assert few == Layout(rows=2, length=2048, documents=16, longest=2048, is_short=True)
    assert more == Layout(rows=2, length=2048, documents=32, longest=2048, is_short=True)
    assert Layout.of(packed((200, 31), (100, 100), length=256)).longest == 256


def test_a_document_has_never_room_for_more_than_a_row() -> None:
    assert Layout.of(packed((1100, 2), length=1536)).longest == 1536


def test_documents_that_are_not_there_have_no_tokens() -> None:
    batch = packed((5, 3), (2, 4), length=8)
    boundaries = Layout.of(batch).boundaries(batch)
    # The second row has two tokens of padding, a document of their own.
    assert boundaries.tolist() == [0, 5, 8, 10, 14, *[16] * 12]
    assert boundaries.dtype is torch.int32


def decoder(directory: Path) -> FusedDecoder:
    shape = read_shape(directory)
    model = FusedDecoder(shape, Lora(rank=4, alpha=8, dropout=0.1), torch.float32, CPU, 64, False)
    fill_weights(model.destinations(), read_weights(directory, shape))
    initialise_adapters(model, 0)
    model.begin_step()
    return model.train()


def gradients(model: FusedDecoder, passes: LaunchedPasses | RepeatedPasses) -> list[torch.Tensor]:
    torch.manual_seed(0)
    losses = [passes.add_gradients(packed((12,), (9,), length=12), 50) for _ in range(3)]
    return [
        *losses,
        *(parameter.grad for parameter in adapter_parameters(model).values() if parameter.grad is not None),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU keeps graphs")
def test_without_a_graph_the_training_goes_on_with_the_same_dropout_and_it_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_model(tmp_path)
    models = [decoder(tmp_path) for _ in range(2)]
    models[0].leaves_out_untrained = False  # its last block would drop other values
    expected = gradients(models[0], LaunchedPasses(models[0]))
    repeated = RepeatedPasses(models[1])
    torch.testing.assert_close(gradients(models[1], repeated), expected, rtol=0, atol=0)
    assert repeated.num_graphs == 0
    assert list(told_fallbacks()) == ["CUDA graph"]
    (record,) = caplog.records
    assert record.message.startswith("passes are not kept as CUDA graphs, kernels are launched anew, slower: ")
