"""How the trainer grows with the GPUs of a host: speed, bytes, memory, stalls, and what a lost process costs.

    python -m benchmarks.trainer.scaling --directory /dev/shm/scaling --seconds 400 --out /tmp/scaling
    python -m benchmarks.trainer.scaling --directory /tmp/scaling --cpu --out /tmp/scaling-out      # a rehearsal

It is the product that runs: `prepare` and `train` as a pod runs them, on random weights. Cases of one wave share no GPU
and run side by side; waves are in the order of what is wanted most, and none begins that would not end in time. Each
case leaves a line of JSON in `cases.jsonl`, its log, and where it was profiled what the trace says.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml
import torch
import yaml

from benchmarks.trainer.random_weights import write_random_model
from benchmarks.trainer.shapes import SHAPES
from benchmarks.trainer.throughput import SAMPLES
from benchmarks.trainer.trace import read_trace

WARM_UP_STEPS = 4
CHECKPOINT_EVERY = 6
PROFILED_STEP = 11
EIGHT_B, SEVENTY_B = "llama-3.1-8b", "llama-3.1-70b"


@dataclass(frozen=True)
class Case:
    """One training."""

    name: str
    gpus: tuple[int, ...]
    sharding: str = "replicate"
    shape: str = EIGHT_B
    precision: str = "bf16"
    nodes: int = 1
    batch: int = 2
    length: int = 4096
    rank: int = 64
    steps: int = 14
    seconds: int = 45  # what it may take at most
    profiled: bool = True
    killed: bool = False  # lose a process behind the first checkpoint, and go on
    is_whole: bool = True  # wait for the last checkpoint and the adapter, not only for the last step


FOUR, PAIR = (0, 1, 2, 3), (0, 1)
WAVES: list[list[Case]] = [
    [Case("replicate-4", FOUR)],
    [Case("full-4", FOUR, "full")],
    [Case("replicate-1", (2,), is_whole=False), Case("replicate-2", PAIR, is_whole=False)],
    [Case("full-2", PAIR, "full", is_whole=False)],
    [Case("hybrid-2x2", FOUR, "hybrid", nodes=2, is_whole=False)],
    [Case("fp8-replicate-4", FOUR, precision="fp8", is_whole=False)],
    [Case("fp8-full-4", FOUR, "full", precision="fp8", is_whole=False)],
    [Case("70b-nf4-full-4", FOUR, "full", SEVENTY_B, "nf4", length=2048, steps=7, seconds=150, is_whole=False)],
    [
        Case(
            "70b-nf4-replicate-1",
            (0,),
            "replicate",
            SEVENTY_B,
            "nf4",
            length=2048,
            steps=6,
            seconds=150,
            is_whole=False,
        ),
        Case("fp8-replicate-1", (3,), precision="fp8", is_whole=False),
    ],
    [Case("lost-process-full-4", FOUR, "full", killed=True, profiled=False, seconds=90)],
    [Case("full-4-long", FOUR, "full", batch=1, length=131072, steps=2, profiled=False, seconds=120, is_whole=False)],
]
TINY: dict[str, Any] = {"shape": "llama-8-layers-of-512", "batch": 1, "length": 64, "rank": 4, "seconds": 300}
REHEARSAL: list[list[Case]] = [
    [Case("replicate-1", (0,), steps=12, **TINY), Case("full-2", (0, 1), "full", steps=12, **TINY)],
    [Case("hybrid-2x1", (0, 1), "hybrid", nodes=2, steps=12, **TINY)],
    [Case("lost", (0, 1), "full", steps=40, killed=True, **TINY)],
]


def main() -> int:
    """Write models, prepare all cases, train them wave by wave."""
    arguments = _parser().parse_args()
    ends = time.monotonic() + arguments.seconds
    waves = REHEARSAL if arguments.cpu else WAVES
    if arguments.only:
        waves = [[case for case in wave if case.name in arguments.only.split(",")] for wave in waves]
    cases = [case for wave in waves for case in wave]
    bench = Bench(arguments.directory, arguments.out, arguments.cpu)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(16) as pool:
        started = time.monotonic()
        models = {shape: pool.submit(bench.write_model, shape) for shape in dict.fromkeys(c.shape for c in cases)}
        for length in {case.length for case in cases}:
            sequences = [c.batch * len(c.gpus) * (c.steps + 1) for c in cases if c.length == length]
            bench.write_data(length, max(sequences))
        prepared = {
            case.name: pool.submit(bench.prepare, number, case, models[case.shape].result)
            for number, case in enumerate(cases)
        }
        for wave in waves:
            takes = max((case.seconds for case in wave), default=0)
            if not wave or time.monotonic() + takes / 2 > ends:
                bench.tell({"left out": [case.name for case in wave]} if wave else {})
                continue
            for case in wave:
                prepared[case.name].result()
            bench.tell({"wave": [case.name for case in wave], "after_seconds": round(time.monotonic() - started, 1)})
            bench.run_wave(wave)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="for models, data and runs; memory is fastest")
    parser.add_argument("--out", type=Path, required=True, help="for what is measured")
    parser.add_argument("--seconds", type=float, default=400, help="time for all of it")
    parser.add_argument("--only", default="", help="names of cases, with commas; all where there is none")
    parser.add_argument("--cpu", action="store_true", help="rehearse with tiny models on CPUs")
    return parser


class Bench:
    """Runs cases, and writes down what they tell."""

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

    def job(self, case: Case) -> dict[str, Any]:
        """Return the FineTuneJob of a case."""
        processes = len(case.gpus) // case.nodes
        compute = {"nodes": case.nodes, "sharding": case.sharding}
        compute |= {"device": "cpu", "processesPerNode": processes} if self.on_cpu else {"gpusPerNode": processes}
        training = {
            "epochs": 1,
            "maxStepsPerEpoch": case.steps,
            "batchSize": case.batch,
            "gradientAccumulation": 1,
            "maxSequenceLength": case.length,
            "packing": False,
            "precision": "fp32" if self.on_cpu else case.precision,
            "kernels": "fused",
            "schedule": {"warmupSteps": 2},
            "logEverySteps": 1,
        }
        if case.profiled and case.steps >= PROFILED_STEP:
            training["profile"] = {"firstStep": PROFILED_STEP, "steps": 1}
        return {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": case.name},
            "spec": {
                "model": {"path": f"models/{case.shape}"},
                "datasets": [{"path": f"data/rows-{case.length}.jsonl", "format": "hermes"}],
                "evaluation": {"enabled": False},
                "lora": {"rank": case.rank, "alpha": 2 * case.rank, "dropout": 0.0},
                "training": training,
                "checkpoint": {"everySteps": CHECKPOINT_EVERY},
                "compute": compute,
            },
        }

    def prepare(self, number: int, case: Case, wait_for_model: Any) -> None:
        """Prepare a case, as its pod would, on processors of its own: it starts a process on each that it has."""
        wait_for_model()
        job_file = self.directory / f"{case.name}.yaml"
        job_file.write_text(yaml.safe_dump(self.job(case)), encoding="utf-8")
        with (self.out / f"{case.name}.prepare.log").open("w") as log:
            subprocess.run(
                [*own_processors(number), *self.command("prepare", case, "prepare")],
                check=True,
                stdout=log,
                stderr=log,
            )

    def command(self, verb: str, case: Case, name: str) -> list[str]:
        """Return the command line of a verb."""
        command = [sys.executable, "-m", "finetune_trainer", verb, str(self.directory / f"{case.name}.yaml")]
        command += ["--shared", str(self.shared), "--network", str(self.directory / "network")]
        return [*command, "--termination-log", str(self.directory / f"{case.name}.{name}.json")]

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
                return self.train_with_a_loss(case)
            started = time.time()
            run = Run(self, case, "train")
            codes = run.wait(case.seconds, lambda: not case.is_whole and len(self.steps(case)) == case.steps)
            return {"exit": codes, **self.figures(case, started)}
        except Exception as error:  # noqa: BLE001 - the other cases are wanted all the same
            return {"failed": f"{type(error).__name__}: {error}"}

    def train_with_a_loss(self, case: Case) -> dict[str, Any]:
        """Kill a process behind the first checkpoint, and go on as the operator would."""
        deadline = time.monotonic() + case.seconds
        run = Run(self, case, "train")
        checkpoint = self.shared / "jobs" / "default" / case.name / "local" / "checkpoints" / f"step-{CHECKPOINT_EVERY}"
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        killed_at = time.time()
        run.kill_a_process()
        codes = run.wait(60)
        ended_at, lost = time.time(), self.steps(case)
        again = time.time()
        codes_again = Run(self, case, "again").wait(max(30.0, deadline - time.monotonic()))
        steps = self.steps(case)
        first = next(step for step in steps if step["timestamp_seconds"] > again)
        return {
            "exit": codes,
            "exit_again": codes_again,
            "seconds_until_the_loss_was_told": round(ended_at - killed_at, 2),
            "steps_before_the_loss": lost[-1]["step"] if lost else 0,
            "resumed_with_step": first["step"],
            "seconds_to_the_first_step_again": round(first["timestamp_seconds"] - again, 1),
            "losses": [round(step["loss"], 4) for step in steps],
        }

    def steps(self, case: Case) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl."""
        path = self.directory / "network" / "default" / case.name / "local" / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def figures(self, case: Case, started: float) -> dict[str, Any]:
        """Return what a training that ended has left behind."""
        steps = self.steps(case)
        if not steps:
            return {"steps": 0, "log": (self.out / f"{case.name}.train-0.log").read_text()[-1500:]}
        # A checkpoint's copies run beside the step after it, the profile's step is slowed by it.
        odd = {PROFILED_STEP, PROFILED_STEP + 1} if case.profiled else set()
        odd |= {step for step in range(case.steps + 1) if step > 1 and (step - 1) % CHECKPOINT_EVERY == 0}
        steady = [step for step in steps if step["step"] > WARM_UP_STEPS and step["step"] not in odd] or steps[-1:]
        prepared = json.loads((self.directory / f"{case.name}.prepare.json").read_text(encoding="utf-8"))["prepared"]
        logs = self.directory / "network" / "default" / case.name / "local"
        found: dict[str, Any] = {
            "tokens_per_second": round(statistics.median(step["tokens_per_second"] for step in steady)),
            "of_steps": len(steady),
            "mfu": steady[-1]["model_flops_utilization"],
            **{
                f"{name}_ms": round(1000 * statistics.median(step[f"{name}_seconds"] for step in steady), 2)
                for name in ("compute", "data_wait", "communication", "checkpoint")
            },
            "milliseconds_of_each_step": [round(1000 * step["seconds"]) for step in steps],
            "seconds_to_the_first_step": round(steps[0]["timestamp_seconds"] - started, 1),
            "first_step_seconds": round(steps[0]["seconds"], 2),
            "wall_seconds": round(time.time() - started, 1),
            "kernels": prepared["kernels"],
            "estimated_gib": round(prepared["estimatedMemoryBytes"] / 2**30, 1),
            "losses": [round(step["loss"], 4) for step in steps],
            "told": [line[21:] for line in (logs / "training.log").read_text().splitlines() if "still for" in line],
        }
        for trace in (logs / "profile").glob("*.json.gz"):
            found["trace"] = read_trace(trace)
        return found


class Run:
    """The agents of a case, one a node, each with its share of the GPUs."""

    def __init__(self, bench: Bench, case: Case, name: str) -> None:
        per_node, master_port = len(case.gpus) // case.nodes, free_port()
        self.processes = []
        for node in range(case.nodes):
            gpus = ",".join(str(gpu) for gpu in case.gpus[node * per_node : (node + 1) * per_node])
            environment = os.environ | {"FINETUNE_METRICS_PORT": str(free_port())}
            environment |= {} if bench.on_cpu else {"CUDA_VISIBLE_DEVICES": gpus, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
            if case.nodes > 1:
                environment |= {"PET_NNODES": str(case.nodes), "PET_NPROC_PER_NODE": str(per_node)}
                environment |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(master_port)}
                environment |= {"PET_NODE_RANK": str(node)}
            with (bench.out / f"{case.name}.{name}-{node}.log").open("w") as log:
                command = bench.command("train", case, f"{name}-{node}")
                self.processes.append(
                    subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
                )

    def wait(self, seconds: float, is_enough: Callable[[], bool] = lambda: False) -> list[int]:
        """Wait for the end, or end it when the time is over or it is enough; return the exit codes."""
        deadline = time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes):
            if time.monotonic() > deadline or is_enough():
                for process in self.processes:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.1)
        return [process.returncode for process in self.processes]

    def kill_a_process(self) -> None:
        """Kill one of the processes that train."""
        children = psutil.Process(self.processes[-1].pid).children(recursive=True)
        training = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        training[-1].kill()


class Gpu:
    """What one GPU was seen doing."""

    def __init__(self) -> None:
        self.memory_bytes = 0
        self.watts: list[float] = []
        self.clocks: list[int] = []

    def look(self, index: int) -> None:
        """Look once."""
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        self.memory_bytes = max(self.memory_bytes, pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        if pynvml.nvmlDeviceGetUtilizationRates(handle).gpu > 50:
            self.watts.append(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)
            self.clocks.append(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))

    def figures(self) -> dict[str, float]:
        """Return the peak of the memory in use, and medians while it was busy."""
        return {
            "gib": round(self.memory_bytes / 2**30, 1),
            "watts": round(statistics.median(self.watts)) if self.watts else 0,
            "mhz": statistics.median(self.clocks) if self.clocks else 0,
        }


@contextmanager
def watch_gpus(on_cpu: bool) -> Iterator[dict[int, Gpu]]:
    """Look at all GPUs four times a second meanwhile."""
    if on_cpu:
        yield {}
        return
    pynvml.nvmlInit()
    seen = {index: Gpu() for index in range(pynvml.nvmlDeviceGetCount())}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            for index, gpu in seen.items():
                gpu.look(index)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def own_processors(number: int) -> list[str]:
    """Return what begins a command that is to run on four processors of a large machine."""
    num_processors = os.cpu_count() or 1
    first = 4 * number % num_processors
    return ["taskset", "-c", f"{first}-{first + 3}"] if num_processors >= 16 else []


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    torch.set_num_threads(8)
    sys.exit(main())
