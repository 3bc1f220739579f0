"""Kernels that cannot be compiled."""

import logging

import pytest
import torch
from prometheus_client import CollectorRegistry
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from finetune_trainer.contract import series
from finetune_trainer.kernels import fallback
from finetune_trainer.kernels.fallback import maker_with_fallback, told_fallbacks, with_fallback
from finetune_trainer.metrics import NodeCollector

FAILURES = {
    "the compiler refuses the kernel": CompilationError("source", None, "no such operation"),
    "the assembler refuses it": PTXASError("ptxas exited with 255"),
    "it takes more shared memory than the GPU has": OutOfResources(300_000, 232_448, "shared memory"),
    "there is no C compiler": RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
    "the cache cannot be written": PermissionError(13, "Permission denied", "/root/.triton"),
}


@pytest.fixture(autouse=True)
def _no_kernel_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_failed", {})


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_the_twin_computes_what_a_kernel_cannot_and_it_is_told_once(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def fast(number: int) -> int:
        tries.append(number)
        raise failure

    compute = with_fallback("gate", fast, lambda number: number + 1)
    with caplog.at_level(logging.WARNING):
        assert [compute(1), compute(2), compute(3)] == [2, 3, 4]
    assert tries == [1]
    assert [record.message[:60] for record in caplog.records] == [
        "kernel gate could not be compiled, PyTorch computes it, slower"[:60]
    ]
    assert list(told_fallbacks()) == ["gate"]


def test_what_is_made_first_and_computed_later_falls_back_when_it_is_computed() -> None:
    def make(values: list[int]) -> object:
        def write() -> None:
            raise PTXASError("ptxas exited with 255")

        return write

    def make_twin(values: list[int]) -> object:
        return lambda: values.append(7)

    values: list[int] = []
    write = maker_with_fallback("make_copier", make, make_twin)(values)
    write()
    write()
    assert values == [7, 7]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error"), KeyError()]
)
def test_other_errors_are_not_taken_for_a_failure_to_compile(error: Exception) -> None:
    def fast() -> None:
        raise error

    with pytest.raises(type(error)):
        with_fallback("gate", fast, lambda: None)()
    assert not told_fallbacks()


def test_the_exporter_tells_how_many_kernels_could_not_be_compiled() -> None:
    registry = CollectorRegistry()
    registry.register(NodeCollector(with_gpus=False, peak_memory_bytes=dict, node_rank=0))
    assert registry.get_sample_value(series.KERNEL_FALLBACKS) == 0
    fallback.remember("gate", PTXASError("ptxas exited with 255"))
    assert registry.get_sample_value(series.KERNEL_FALLBACKS) == 1
