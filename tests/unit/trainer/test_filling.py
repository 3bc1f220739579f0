import torch

from finetune_trainer.filling import layer_by_layer

NAMES = ("tok_embeddings.weight", "layers.0.a", "layers.0.b", "layers.1.a", "layers.1.b", "layers.10.a", "norm.scale")


def order_of(names: list[str]) -> list[str]:
    return [name for name, _ in layer_by_layer(NAMES, ((name, torch.zeros(1)) for name in names))]


def test_weights_of_a_layer_come_one_after_another_whatever_the_order_of_the_files() -> None:
    files = ["layers.1.a", "layers.0.a", "norm.scale", "layers.10.a", "layers.0.b", "layers.1.b"]
    assert order_of(files) == ["norm.scale", "layers.10.a", "layers.0.a", "layers.0.b", "layers.1.a", "layers.1.b"]


def test_weights_of_an_incomplete_layer_and_unknown_ones_are_not_lost() -> None:
    files = ["layers.1.a", "layers.7.c", "layers.0.a", "layers.0.b", "something"]
    assert sorted(order_of(files)) == sorted(files)
