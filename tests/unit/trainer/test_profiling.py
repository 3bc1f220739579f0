import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.contract.spec import Profile
from finetune_trainer.profiling import StepProfiler


def run_steps(profiler: StepProfiler, steps: range) -> None:
    for step in steps:
        profiler.before_step(step)
        for _ in range(step):  # so that a trace tells by its products which steps are in it
            torch.ones(3, 3) @ torch.ones(3, 3)
        profiler.after_step(step)


def num_products(path: Path) -> int:
    with gzip.open(path) as file:
        trace: dict[str, Any] = json.load(file)
    return sum(event.get("name") == "aten::mm" for event in trace["traceEvents"])


def test_the_steps_that_were_asked_for_are_traced_and_no_other(tmp_path: Path) -> None:
    told: list[str] = []
    run_steps(StepProfiler(Profile(first_step=3, steps=2), tmp_path / "profile", told.append), range(1, 8))
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "steps-3-4.json.gz"
    assert num_products(path) == 3 + 4
    assert len(told) == 1
    assert told[0].startswith(f"profile of steps 3 to 4 written to {path} in ")


def test_a_run_that_goes_on_in_the_middle_traces_what_is_left(tmp_path: Path) -> None:
    run_steps(StepProfiler(Profile(first_step=3, steps=3), tmp_path, lambda _: None), range(5, 9))
    (path,) = tmp_path.iterdir()
    assert (path.name, num_products(path)) == ("steps-5-5.json.gz", 5)


@pytest.mark.parametrize("wanted", [None, Profile(first_step=9, steps=2)])
def test_a_run_without_these_steps_traces_nothing(tmp_path: Path, wanted: Profile | None) -> None:
    run_steps(StepProfiler(wanted, tmp_path, lambda _: None), range(1, 5))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_does_not_take_the_trace_stops_no_training(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "profile").write_text("a file where the directory should be")
    run_steps(StepProfiler(Profile(first_step=1, steps=1), tmp_path / "profile", told.append), range(1, 4))
    assert len(told) == 1
    assert told[0].startswith("warning: the profile of steps 1 to 1 was not written: ")
