"""Which documents our own kernel of attention is given, and what it is told of them."""

import torch

from finetune_trainer.data.batch import make_batch
from finetune_trainer.fused.attention import are_short, extents_of
from finetune_trainer.fused.repeated import Layout
from tests.tiny_run import random_sequence


def test_each_token_knows_where_its_document_starts_and_ends() -> None:
    batch = make_batch([random_sequence(0, (2, 3)), random_sequence(1, (4,))], length_multiple=6)
    assert batch.document_lengths is not None
    # Padding, the sixth token of the first row and the last two of the second, are documents of their own.
    starts, ends = extents_of(batch.document_lengths).tolist()
    assert starts == [0, 0, 2, 2, 2, 5, 6, 6, 6, 6, 10, 10]
    assert ends == [2, 2, 5, 5, 5, 6, 10, 10, 10, 10, 12, 12]
    assert extents_of(batch.document_lengths).dtype is torch.int32


def test_documents_are_short_by_their_mean() -> None:
    assert are_short(8192, 4)
    assert not are_short(8192, 3)


def test_a_graph_has_the_kernel_that_its_first_batch_was_launched_with() -> None:
    """Room for documents is rounded up, but a kernel cannot be compiled while a graph is made."""
    long = make_batch([random_sequence(0, (3000, 1500)), random_sequence(1, (4500,))])
    short = make_batch([random_sequence(0, (3000, 500, 500, 500)), random_sequence(1, (4500,))])
    assert Layout.of(long) == Layout(rows=2, length=4500, documents=16, longest=4500, is_short=False)
    assert Layout.of(short) == Layout(rows=2, length=4500, documents=16, longest=4500, is_short=True)
