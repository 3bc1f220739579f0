"""A training that is killed again and again ends with the very adapter of one that never stopped.

The processes are real and the kills are SIGKILL, at random moments: while a step is computed, and, as there is a
checkpoint after each step, mostly while one is written, flushed, read back, renamed or removed. They are forked from a
server that has imported everything once, since importing torch takes longer than many steps of a tiny model.
"""

import json
import multiprocessing
import multiprocessing.context
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

from finetune_trainer.checkpoint.content import Progress
from finetune_trainer.checkpoint.layout import find_checkpoints
from finetune_trainer.checkpoint.manifest import DamagedError, verify
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from tests.tiny_run import prepare_tiny_job, train_in_process

pytestmark = pytest.mark.gang

SEED = 20261123
NUM_EPOCHS, STEPS_PER_EPOCH = 20, 6
TOTAL_STEPS = NUM_EPOCHS * STEPS_PER_EPOCH
# Processes of the gang, and how often one of them is killed.
KILLS = {"one process": (1, 40), "two processes": (2, 10)}
DEADLINE_SECONDS = 120


@dataclass(frozen=True)
class Run:
    """A job, and the gang that trains it."""

    job: TrainerJob
    paths: JobPaths
    num_processes: int

    @property
    def checkpoints(self) -> Path:
        return self.paths.checkpoints

    def losses(self) -> list[float]:
        lines = (self.paths.logs / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    def adapter(self) -> bytes:
        return (self.paths.adapter / "adapter_model.safetensors").read_bytes()


def prepare(root: Path, num_processes: int, keep: int) -> Run:
    job, paths = prepare_tiny_job(
        root,
        training={
            "epochs": NUM_EPOCHS,
            "batchSize": 1,
            "gradientAccumulation": 2 // num_processes,
            "activationCheckpointing": False,
        },
        lora={"rank": 4, "alpha": 8, "dropout": 0.1},
        compute={"device": "cpu", "processesPerNode": num_processes},
        checkpoint={"everySteps": 1, "keep": keep},
    )
    return Run(job, paths, num_processes)


@pytest.fixture(scope="module")
def server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny_run"])
    return context


def silently_train(rank: int, world_size: int, store: Path, run: Run, output: Path) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    train_in_process(rank, world_size, store, [(run.job, run.paths, world_size)])


Processes = list[multiprocessing.context.ForkServerProcess]


@contextmanager
def training(run: Run, server: multiprocessing.context.ForkServerContext, attempt: int) -> Iterator[Processes]:
    root = run.paths.shared.parent
    processes = [
        server.Process(
            target=silently_train,
            args=(rank, run.num_processes, root / f"store-{attempt}", run, root / f"output-{attempt}"),
        )
        for rank in range(run.num_processes)
    ]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def train_to_the_end(run: Run, server: multiprocessing.context.ForkServerContext, attempt: int = 0) -> None:
    with training(run, server, attempt) as processes:
        for process in processes:
            process.join(DEADLINE_SECONDS)
            assert process.exitcode == 0, (run.paths.shared.parent / f"output-{attempt}").read_text()


def newest_step(run: Run) -> int:
    found = find_checkpoints(run.checkpoints)
    return int(found[0].name.removeprefix("step-")) if found else 0


def newest_whole_step(run: Run) -> int:
    for directory in find_checkpoints(run.checkpoints):
        try:
            return verify(directory).step
        except DamagedError:
            continue
    return 0


def wait_for_step(run: Run, step: int, processes: Processes) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while newest_step(run) < step and all(process.is_alive() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def require_same_checkpoints(run: Run, undisturbed: Run) -> None:
    """Whatever lies there after a kill is what the undisturbed run had after the same step."""
    for directory in find_checkpoints(run.checkpoints):
        expected = undisturbed.checkpoints / directory.name
        verify(directory)
        for file in ("adapter_model.safetensors", "optimizer.safetensors"):
            assert (directory / file).read_bytes() == (expected / file).read_bytes(), f"{directory / file}"
        saved, wanted = (
            Progress(**json.loads((path / "trainer_state.json").read_text())["progress"])
            for path in (directory, expected)
        )
        assert (saved.step, saved.tokens, saved.recent_losses) == (wanted.step, wanted.tokens, wanted.recent_losses)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, server: multiprocessing.context.ForkServerContext
) -> Callable[[int], Run]:
    """Return a run that never stopped, by its number of processes."""

    @cache
    def train(num_processes: int) -> Run:
        run = prepare(tmp_path_factory.mktemp("undisturbed"), num_processes, keep=TOTAL_STEPS)
        train_to_the_end(run, server)
        assert len(run.losses()) == TOTAL_STEPS
        return run

    return train


def test_a_training_goes_on_unharmed_when_a_process_was_frozen(
    tmp_path: Path, server: multiprocessing.context.ForkServerContext, undisturbed: Callable[[int], Run]
) -> None:
    run = prepare(tmp_path, 2, keep=2)
    with training(run, server, 0) as processes:
        for step, process in ((5, processes[1]), (20, processes[0])):
            wait_for_step(run, step, processes)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(1)
            os.kill(process.pid, signal.SIGCONT)
        for process in processes:
            process.join(DEADLINE_SECONDS)
            assert process.exitcode == 0, (tmp_path / "output-0").read_text()
    assert run.losses() == undisturbed(2).losses()
    assert run.adapter() == undisturbed(2).adapter()


@pytest.mark.parametrize("gang", KILLS)
def test_a_training_that_is_killed_again_and_again_loses_no_checkpoint_and_uses_no_wrong_one(
    gang: str,
    tmp_path: Path,
    server: multiprocessing.context.ForkServerContext,
    undisturbed: Callable[[int], Run],
) -> None:
    num_processes, num_kills = KILLS[gang]
    expected = undisturbed(num_processes)
    chance = random.Random(SEED)
    run = prepare(tmp_path / "killed", num_processes, keep=2)
    steps_before_kill = []
    for attempt in range(num_kills):
        saved = newest_whole_step(run)
        with training(run, server, attempt) as processes:
            wait_for_step(run, saved + chance.randint(1, 2), processes)
            time.sleep(chance.uniform(0, 0.03))
            chance.choice(processes).kill()
        steps_before_kill.append(newest_whole_step(run) - saved)
        # The newest of before is there, or a newer one.
        assert newest_whole_step(run) >= saved
        require_same_checkpoints(run, expected)
    assert sum(steps_before_kill) < TOTAL_STEPS, "the training ended before the last kill"
    assert sum(steps > 0 for steps in steps_before_kill) == num_kills, "a kill came before the training had begun"

    train_to_the_end(run, server, attempt=num_kills)
    assert run.losses() == expected.losses()
    assert run.adapter() == expected.adapter()
    assert load_file(run.paths.adapter / "adapter_model.safetensors").keys()
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [f"step-{TOTAL_STEPS - 1}", f"step-{TOTAL_STEPS}"]
