"""Copies of what is on a GPU, made while the GPU goes on."""

import time

import torch

from finetune_trainer.checkpoint.content import create_moments, optimizer_tensors
from finetune_trainer.checkpoint.snapshot import Snapshot

GPU = torch.device("cuda", 0)
BUSY_CYCLES = 1_000_000_000  # about half a second
NUM_VALUES = 1 << 26  # 256 MiB


def test_a_copy_waits_for_what_the_gpu_still_has_to_do_and_the_next_change_for_the_copy() -> None:
    weight = torch.zeros(NUM_VALUES, device=GPU)
    snapshot = Snapshot({"weight": weight})
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)
    weight.fill_(1.0)
    snapshot.begin()
    snapshot.wait_before_change()
    weight.fill_(2.0)
    copied = snapshot.finish()["weight"]
    assert copied.is_pinned()
    assert (copied.min().item(), copied.max().item()) == (1.0, 1.0)


def test_the_program_waits_for_nothing() -> None:
    weight = torch.zeros(NUM_VALUES, device=GPU)
    snapshot = Snapshot({"weight": weight})
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)
    started = time.monotonic()
    snapshot.begin()
    snapshot.wait_before_change()
    weight.fill_(2.0)
    assert time.monotonic() - started < 0.1
    assert snapshot.finish()["weight"].max().item() == 0.0


def test_the_step_count_of_a_fused_optimizer_is_copied_with_its_moments() -> None:
    weight = torch.nn.Parameter(torch.ones(3, device=GPU))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    create_moments(optimizer)
    tensors = optimizer_tensors(optimizer, {"w": weight})
    assert tensors["w.step"].is_cuda
    snapshot = Snapshot(tensors)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    snapshot.begin()
    snapshot.wait_before_change()
    optimizer.step()
    copied = snapshot.finish()
    assert copied["w.step"].item() == 1.0
    assert torch.allclose(copied["w.exp_avg"], torch.full((3,), 0.1))
