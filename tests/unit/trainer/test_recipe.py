import math

import pytest

from finetune_trainer.checkpoint.content import Progress
from finetune_trainer.contract.spec import Training
from finetune_trainer.recipe import advance, learning_rate, random_stream
from finetune_trainer.trainable import length_multiple

SCHEDULE = {
    "the first step of the warm-up": (0, 0.25),
    "half of the warm-up": (1, 0.5),
    "the last step of the warm-up reaches the peak": (3, 1.0),
    "the cosine starts at the peak": (4, 1.0),
    "a quarter of the cosine": (6, 0.5 * (1 + math.sqrt(0.5))),
    "half of the cosine": (8, 0.5),
    "the last step is small, but not lost": (11, 0.5 * (1 - math.cos(math.pi / 8))),
}


@pytest.mark.parametrize(("step", "share_of_peak"), SCHEDULE.values(), ids=SCHEDULE.keys())
def test_learning_rate_warms_up_for_four_steps_of_twelve_and_falls_as_a_cosine(step: int, share_of_peak: float) -> None:
    assert learning_rate(step, 2e-4, warmup_steps=4, total_steps=12) == pytest.approx(2e-4 * share_of_peak)


def test_a_run_of_one_step_trains_at_the_peak() -> None:
    assert learning_rate(0, 2e-4, warmup_steps=0, total_steps=1) == 2e-4


def test_progress_keeps_the_first_loss_and_the_last_ten() -> None:
    progress = Progress()
    for loss in range(12, 0, -1):
        progress = advance(progress, float(loss), num_tokens=100, seconds=0.5)
    assert (progress.step, progress.tokens, progress.seconds) == (12, 1200, 6.0)
    assert progress.first_loss == 12.0
    assert progress.recent_losses == (10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0)


def test_random_streams_differ_in_every_part_and_fit_a_generator() -> None:
    streams = {random_stream(seed, step, index) for seed in (0, 1) for step in (0, 1) for index in (-1, 0, 1)}
    assert len(streams) == 12
    assert all(0 <= stream < 2**63 for stream in streams)


LENGTHS = {
    "packed sequences on a GPU have one length": ("cuda", Training(max_sequence_length=4096), 4096),
    "which is a whole number of attention's blocks": ("cuda", Training(max_sequence_length=1000), 1024),
    "conversations on a GPU suit its tensor cores": ("cuda", Training(packing=False), 8),
    "a CPU computes no more than it has to": ("cpu", Training(), 1),
}


@pytest.mark.parametrize(("device_type", "training", "multiple"), LENGTHS.values(), ids=LENGTHS.keys())
def test_micro_batches_are_padded_to_what_the_device_computes_well(
    device_type: str, training: Training, multiple: int
) -> None:
    assert length_multiple(device_type, training) == multiple
