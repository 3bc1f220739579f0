import numpy as np
import pytest
from benchmarks.trainer.shapes import SHAPES

from finetune_trainer.architecture import parse_config
from finetune_trainer.contract.spec import Lora
from finetune_trainer.data.batch import make_batch
from finetune_trainer.data.packed import Sequence
from finetune_trainer.flops import peak_flops, training_flops

GPUS = {
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA GB200": 2250e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce GTX 1080": None,
}


@pytest.mark.parametrize(("name", "flops"), GPUS.items())
def test_a_gpu_is_known_by_the_name_that_its_driver_gives_it(name: str, flops: float | None) -> None:
    assert peak_flops(name) == flops


def test_a_token_of_llama_8b_at_rank_64_takes_34_gflop() -> None:
    # Counted by hand for a whole row of 4,096 tokens: 4 x 6.979e9 frozen and 6 x 0.168e9 trained parameters of the
    # blocks, 4 x 0.525e9 of the head, and 12 x 32 layers x 4,096 features x 2,048.5 tokens seen on average.
    shape = parse_config(SHAPES["llama-3.1-8b"])
    a_row = training_flops(shape, Lora(rank=64), 4096, 4096, 4096 * 4097 // 2)
    assert a_row / 4096 == pytest.approx(34.25e9, rel=0.001)


def test_tokens_that_are_not_predicted_need_no_head() -> None:
    shape = parse_config(SHAPES["llama-3.1-8b"])
    with_targets, without = (training_flops(shape, Lora(), 100, targets, 5050) for targets in (100, 0))
    assert with_targets - without == 100 * 4 * 128256 * 4096


def test_documents_of_a_packed_row_do_not_see_each_other_and_padding_sees_nothing() -> None:
    row = Sequence(np.zeros(7, np.int32), np.ones(7, np.bool_), np.array([3, 4], np.int32))
    assert make_batch([row, None], length_multiple=16).num_pairs == 3 * 4 // 2 + 4 * 5 // 2
