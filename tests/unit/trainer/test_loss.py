import pytest
import torch
from torch.nn import functional

from finetune_trainer.loss import summed_cross_entropy
from finetune_trainer.planner.memory import LOSS_CHUNK_TOKENS


@pytest.mark.parametrize("num_targets", [1, 7, LOSS_CHUNK_TOKENS, LOSS_CHUNK_TOKENS + 5])
def test_loss_and_gradient_are_those_of_plain_cross_entropy(num_targets: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(num_targets, 8, dtype=torch.float64, requires_grad=True)
    head = torch.randn(50, 8, dtype=torch.float64)
    targets = torch.randint(0, 50, (num_targets,))
    plain = functional.cross_entropy(hidden @ head.T, targets, reduction="sum")
    (expected,) = torch.autograd.grad(plain * 0.3, hidden)

    ours = summed_cross_entropy(hidden, head, targets)
    (gradient,) = torch.autograd.grad(ours * 0.3, hidden)

    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_a_batch_without_targets_has_no_loss_but_a_gradient_so_that_every_process_runs_backward() -> None:
    hidden = torch.randn(0, 8, requires_grad=True)
    loss = summed_cross_entropy(hidden, torch.randn(50, 8), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None
