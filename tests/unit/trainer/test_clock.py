import time

import pytest
import torch

from finetune_trainer.clock import MEASURED, StepClock, lay_out, read_rows, tell_waiting
from finetune_trainer.contract.series import Phase

SLEEP_SECONDS = 0.02


def test_what_is_in_no_phase_is_computing() -> None:
    clock = StepClock(torch.device("cpu"))
    clock.begin()
    with clock.phase(Phase.DATA):
        time.sleep(SLEEP_SECONDS)
    for _ in range(2):
        with clock.phase(Phase.COMMUNICATION):
            time.sleep(SLEEP_SECONDS)
    time.sleep(2 * SLEEP_SECONDS)
    clock.end()
    times = clock.read()
    assert times[Phase.DATA] >= SLEEP_SECONDS
    assert times[Phase.COMMUNICATION] >= 2 * SLEEP_SECONDS
    assert times[Phase.COMPUTE] >= 2 * SLEEP_SECONDS
    assert times[Phase.CHECKPOINT] == 0.0
    assert times == clock.last


def test_phases_of_a_step_add_up_to_the_step() -> None:
    clock = StepClock(torch.device("cpu"))
    started = time.monotonic()
    clock.begin()
    for phase in MEASURED:
        with clock.phase(phase):
            time.sleep(SLEEP_SECONDS)
    clock.end()
    took = time.monotonic() - started
    assert sum(clock.read().values()) == pytest.approx(took, abs=0.005)


def test_a_checkpoint_between_two_steps_counts_to_the_second_and_once() -> None:
    clock = StepClock(torch.device("cpu"))
    clock.begin()
    clock.end()
    clock.read()
    with clock.checkpoint_between_steps():
        time.sleep(SLEEP_SECONDS)
    seen = []
    for _ in range(2):
        clock.begin()
        clock.end()
        seen.append(clock.read()[Phase.CHECKPOINT])
    assert seen[0] >= SLEEP_SECONDS
    assert seen[1] == 0.0


def test_who_comes_last_to_a_reduction_waited_for_nobody() -> None:
    measured = [
        {Phase.DATA: 0.0, Phase.COMPUTE: 1.0, Phase.COMMUNICATION: 3.5, Phase.CHECKPOINT: 0.25},
        {Phase.DATA: 1.0, Phase.COMPUTE: 3.0, Phase.COMMUNICATION: 0.5, Phase.CHECKPOINT: 0.25},
    ]
    assert tell_waiting(measured) == [
        {Phase.DATA: 0.0, Phase.COMPUTE: 1.0, Phase.COMMUNICATION: 0.5, Phase.WAIT: 3.0, Phase.CHECKPOINT: 0.25},
        {Phase.DATA: 1.0, Phase.COMPUTE: 3.0, Phase.COMMUNICATION: 0.5, Phase.WAIT: 0.0, Phase.CHECKPOINT: 0.25},
    ]


def test_rows_of_all_processes_are_told_apart_after_they_were_summed() -> None:
    first = {Phase.DATA: 1.0, Phase.COMPUTE: 2.0, Phase.COMMUNICATION: 3.0, Phase.CHECKPOINT: 4.0}
    second = {Phase.DATA: 5.0, Phase.COMPUTE: 6.0, Phase.COMMUNICATION: 7.0, Phase.CHECKPOINT: 8.0}
    summed = [a + b for a, b in zip(lay_out(first, 0, 2), lay_out(second, 1, 2), strict=True)]
    assert read_rows(summed) == [first, second]
