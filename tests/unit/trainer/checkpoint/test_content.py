import torch

from finetune_trainer.checkpoint.content import create_moments, optimizer_tensors, restore


def run(steps: range, weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    for step in steps:
        weight.grad = torch.full_like(weight, 0.1 * (step + 1))
        optimizer.step()


def test_an_optimizer_goes_on_from_its_tensors_as_if_it_had_never_stopped() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    run(range(3), weight, optimizer)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, {"w": weight}).items()}
    assert saved["w.step"] == 3
    resumed = torch.nn.Parameter(weight.detach().clone())
    run(range(3, 6), weight, optimizer)

    other = torch.optim.AdamW([resumed], lr=0.1)
    create_moments(other)
    restore(optimizer_tensors(other, {"w": resumed}), saved)
    run(range(3, 6), resumed, other)
    assert torch.equal(resumed, weight)


def test_moments_that_are_there_before_the_first_step_are_those_that_adamw_would_make() -> None:
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [torch.optim.AdamW([weight], lr=0.1) for weight in weights]
    create_moments(optimizers[0])
    for weight, optimizer in zip(weights, optimizers, strict=True):
        run(range(3), weight, optimizer)
    assert torch.equal(*weights)
    made, expected = (optimizer.state[weight] for weight, optimizer in zip(weights, optimizers, strict=True))
    assert {name: (t.dtype, t.shape, t.device) for name, t in made.items()} == {
        name: (t.dtype, t.shape, t.device) for name, t in expected.items()
    }


def test_the_tensors_stay_the_same_from_step_to_step() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    create_moments(optimizer)
    tensors = optimizer_tensors(optimizer, {"w": weight})
    run(range(3), weight, optimizer)
    assert tensors["w.step"] == 3
    assert torch.equal(tensors["w.exp_avg"], optimizer.state[weight]["exp_avg"])
