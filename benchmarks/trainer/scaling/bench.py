"""Prepares cases and trains them, wave by wave, and writes down what they tell."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.trainer.random_weights import write_random_model
from benchmarks.trainer.scaling.cases import Case
from benchmarks.trainer.scaling.gpus import watch_gpus
from benchmarks.trainer.scaling.reading import Step, read_figures, read_samples, read_steps
from benchmarks.trainer.scaling.running import Run, own_processors
from benchmarks.trainer.shapes import SHAPES
from benchmarks.trainer.throughput import SAMPLES


class Bench:
    """Runs cases.

    Args:
        directory: for models, data and runs.
        out: for figures and logs.
        on_cpu: it is a rehearsal.
    """

    def __init__(self, directory: Path, out: Path, on_cpu: bool) -> None:
        self.directory, self.out, self.on_cpu = directory, out, on_cpu
        self.shared = directory / "shared"
        self._writing = threading.Lock()

    def tell(self, line: dict[str, Any]) -> None:
        """Write down a line of figures."""
        if line:
            with self._writing, (self.out / "cases.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)

    # --- before -------------------------------------------------------------------------------------------------------

    def write_model(self, shape: str) -> None:
        """Write the random model of a shape where it is not there yet."""
        directory, started = self.shared / "models" / shape, time.monotonic()
        if not directory.exists():
            write_random_model(directory, SHAPES[shape], num_threads=16)
        self.tell({"model": shape, "written_in_seconds": round(time.monotonic() - started, 1)})

    def write_data(self, length: int, num_rows: int) -> None:
        """Write documents that fill a sequence of a length each."""
        path = self.shared / "data" / f"rows-{length}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = SAMPLES.read_text(encoding="utf-8").splitlines()
        words = " ".join(json.loads(row)["conversations"][0]["value"] for row in samples)
        words = words.replace("<", " ").replace(">", " ")  # plain words, no tool calls
        text = words * (1 + length * 8 // len(words))
        rows = []
        for number in range(num_rows):
            start = number * 997 % (len(words) // 2)
            turns = [
                {"from": "human", "value": f"Recite {number}."},
                {"from": "gpt", "value": text[start : start + length * 8]},
            ]
            rows.append(json.dumps({"conversations": turns}))
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")

    def prepare(self, number: int, case: Case, wait_for_model: Any) -> None:
        """Prepare a case, as its pod would, on processors of its own: it starts a process on each that it has."""
        wait_for_model()
        self._job_file(case).write_text(yaml.safe_dump(case.job(self.on_cpu)), encoding="utf-8")
        with (self.out / f"{case.name}.prepare.log").open("w") as log:
            command = [*own_processors(number), *self._command("finetune_trainer", "prepare", case, "prepare")]
            subprocess.run(command, check=True, stdout=log, stderr=log)

    def _command(self, module: str, verb: str, case: Case, name: str) -> list[str]:
        command = [sys.executable, "-m", module, verb, str(self._job_file(case))]
        command += ["--shared", str(self.shared), "--network", str(self.directory / "network")]
        return [*command, "--termination-log", str(self._told_file(case, name))]

    def _job_file(self, case: Case) -> Path:
        return self.directory / f"{case.name}.yaml"

    def _told_file(self, case: Case, name: str) -> Path:
        return self.directory / f"{case.name}.{name}.json"

    # --- training -----------------------------------------------------------------------------------------------------

    def run_wave(self, wave: list[Case]) -> None:
        """Train cases side by side."""
        with watch_gpus(self.on_cpu) as seen, ThreadPoolExecutor(len(wave)) as pool:
            for case, figures in zip(wave, pool.map(self.train, wave), strict=True):
                gpus = {gpu: seen[gpu].figures() for gpu in case.gpus if gpu in seen}
                self.tell({"case": case.name, **figures, "gpus": gpus})

    def train(self, case: Case) -> dict[str, Any]:
        """Train a case to its end, and return what was measured."""
        try:
            if case.killed:
                return self._train_with_a_loss(case)
            started = time.time()
            run = self._start(case, "train")
            codes = run.wait(case.seconds, lambda: not case.is_whole and self._is_at_its_last_step(case))
            return {"exit": codes, "wall_seconds": round(time.time() - started, 1), **self._figures(case, started)}
        except Exception as error:  # noqa: BLE001 - the other cases are wanted all the same
            return {"failed": f"{type(error).__name__}: {error}"}

    def _start(self, case: Case, name: str) -> Run:
        return Run(case, partial(self._agent, case, name), {"FINETUNE_SAMPLES": str(self._samples(case))}, self.on_cpu)

    def _agent(self, case: Case, name: str, node: int) -> tuple[Sequence[str], Path]:
        """Return the command line of a node's agent, and the file for its log."""
        module = "benchmarks.trainer.scaling.sampled" if case.is_sampled else "finetune_trainer"
        return self._command(module, "train", case, f"{name}-{node}"), self.out / f"{case.name}.{name}-{node}.log"

    def _samples(self, case: Case) -> Path:
        directory = self.directory / "samples" / case.name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def _train_with_a_loss(self, case: Case) -> dict[str, Any]:
        """Kill a process behind the first checkpoint, and go on as the operator would."""
        deadline = time.monotonic() + case.seconds
        run = self._start(case, "train")
        checkpoints = self.shared / "jobs" / "default" / case.name / "local" / "checkpoints"
        while not (checkpoints / f"step-{case.checkpoint_every}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        killed_at = time.time()
        run.kill_a_process()
        codes = run.wait(60)
        ended_at, lost = time.time(), self._steps(case)
        again = self._start(case, "again")
        codes_again = again.wait(max(30.0, deadline - time.monotonic()), lambda: self._is_at_its_last_step(case))
        steps = self._steps(case)
        first = next(step for step in steps if step["timestamp_seconds"] > ended_at)
        return {
            "exit": codes,
            "exit_again": codes_again,
            "told": json.loads(self._told_file(case, "train-0").read_text(encoding="utf-8")),
            "seconds_until_the_loss_was_told": round(ended_at - killed_at, 2),
            "steps_before_the_loss": lost[-1]["step"] if lost else 0,
            "resumed_with_step": first["step"],
            "seconds_to_the_first_step_again": round(first["timestamp_seconds"] - ended_at, 1),
            "losses": [(step["step"], round(step["loss"], 4)) for step in steps],
        }

    def _logs(self, case: Case) -> Path:
        return self.directory / "network" / "default" / case.name / "local"

    def _steps(self, case: Case) -> list[Step]:
        return read_steps(self._logs(case))

    def _is_at_its_last_step(self, case: Case) -> bool:
        steps = self._steps(case)
        return bool(steps) and steps[-1]["step"] == case.steps

    def _figures(self, case: Case, started: float) -> dict[str, Any]:
        if not self._steps(case):
            return {"steps": 0, "log": (self.out / f"{case.name}.train-0.log").read_text()[-1500:]}
        found = read_figures(case, self._logs(case), self._told_file(case, "prepare"), started)
        sampled = (read_samples(path, self._steps(case)) for path in self._samples(case).glob("*.jsonl"))
        found["sampled"] = [sample for sample in sampled if sample["while_a_checkpoint_is_written"]["samples"]]
        return found


def write_inputs(bench: Bench, cases: Sequence[Case], pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Begin to write models, data, and what `prepare` makes of them; return what is to be waited for, by case."""
    models = {shape: pool.submit(bench.write_model, shape) for shape in dict.fromkeys(case.shape for case in cases)}
    for length in {case.length for case in cases}:
        sequences = [case.batch * len(case.gpus) * (case.steps + 1) for case in cases if case.length == length]
        bench.write_data(length, max(sequences))
    return {
        case.name: pool.submit(bench.prepare, number, case, models[case.shape].result)
        for number, case in enumerate(cases)
    }
