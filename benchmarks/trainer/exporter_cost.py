"""What the exporter costs a training: publishing each step, and answering Prometheus and the operator.

    python -m benchmarks.trainer.exporter_cost --step-seconds 0.2 --seconds 120

A step is a number of matrix products on one thread. Blocks of steps of three kinds take turns at random, so that what
else the machine does meets all of them alike:

    none      nothing is published
    idle      each step is published as rank 0 publishes it, and nobody asks
    scraped   the same, while another process reads /metrics and /progress once a second, fifteen times as often as
              Prometheus does by the chart's default

Printed are how long a step takes in the median block of each kind, and two figures that depend on no other work: the
processor time of publishing a step, and of answering for both pages. `share` is what they come to for a step of this
length and one answer each 15 seconds: the most that the exporter takes, as if the training stood still for all of it.
"""

import argparse
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from finetune_trainer.clock import Times
from finetune_trainer.contract import series
from finetune_trainer.contract.progress import ProgressReport
from finetune_trainer.exporter import RankZeroExporter, start_exporter
from finetune_trainer.gang import Place
from finetune_trainer.metrics import StepRecord

GOAL = 0.005
CPU = torch.device("cpu")
RECORD = StepRecord(
    step=1,
    epoch=0.1,
    loss=1.5,
    learning_rate=2e-4,
    gradient_norm=0.5,
    tokens=131072,
    tokens_per_second=16300.0,
    seconds=8.0,
    compute_seconds=7.5,
    data_wait_seconds=0.01,
    communication_seconds=0.4,
    checkpoint_seconds=0.0,
    model_flops_utilization=0.43,
    timestamp_seconds=1.7e9,
)
PROGRESS = ProgressReport(step=1, total_steps=1000, epoch=1)
# Reads both pages again and again, each time over a new connection, and says how often.
# Reads both pages so often, or for ever where that is 0, with a pause after each.
READER = """
import itertools, sys, time, urllib.request
port, times, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
for _ in range(times) if times else itertools.count():
    for path in ("/metrics", "/progress"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10).read()
    time.sleep(pause)
"""
SCRAPE_SECONDS = 15.0  # podMonitor.interval of the chart
BLOCK_SECONDS = 4.0


class Publisher:
    """What rank 0 does after each step, but for its log and Weights & Biases."""

    def __init__(self, exporter: RankZeroExporter, world_size: int) -> None:
        self._exporter = exporter
        self._times: list[Times] = [dict.fromkeys(series.Phase, 0.1)] * world_size
        self._step = 0

    def __call__(self) -> None:
        self._step += 1
        record = replace(RECORD, step=self._step)
        self._exporter.processes.record_times(self._times)
        self._exporter.metrics.record_step(record)
        changes = {"step": self._step, "loss": 1.5, "filesystems": self._exporter.free_space.reports}
        self._exporter.progress.publish(PROGRESS.model_copy(update=changes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-seconds", type=float, default=1.0, help="what a step is to take")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to measure")
    parser.add_argument("--world-size", type=int, default=16, help="processes of the gang")
    parser.add_argument("--processes-per-node", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    place = Place(0, 0, arguments.world_size, arguments.processes_per_node, CPU)
    with tempfile.TemporaryDirectory() as directory:
        exporter = start_exporter(place, port, {"shared": Path(directory), "network": Path(directory)})
        assert isinstance(exporter, RankZeroExporter)
        publish = Publisher(exporter, arguments.world_size)
        publish()
        result = measure(publish, port, arguments)
    json.dump(result, sys.stdout, indent=1)
    print()


def measure(publish: Publisher, port: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the figures of one measurement."""
    publish_seconds = processor_seconds(publish, repeats=2000)
    answer_seconds = seconds_of_an_answer(port, repeats=200)
    blocks = seconds_of_steps(publish, port, arguments)
    medians = {kind: statistics.median(values) for kind, values in blocks.items()}
    per_second = answer_seconds / SCRAPE_SECONDS
    return {
        "blocks_of_each_kind": len(blocks["none"]),
        **{f"{kind}_ms": round(1000 * value, 3) for kind, value in medians.items()},
        "idle_longer_percent": round(100 * (medians["idle"] / medians["none"] - 1), 3),
        "scraped_each_second_longer_percent": round(100 * (medians["scraped"] / medians["none"] - 1), 3),
        "publish_ms": round(1000 * publish_seconds, 4),
        "answer_ms": round(1000 * answer_seconds, 3),
        "share_percent": round(100 * (publish_seconds / medians["none"] + per_second), 4),
        "goal_percent": 100 * GOAL,
        "shortest_step_within_goal_ms": round(1000 * publish_seconds / (GOAL - per_second), 2),
    }


def processor_seconds(work: Callable[[], None], repeats: int) -> float:
    """Return the processor time of this thread for one piece of work, the median over ten rounds."""
    rounds = []
    for _ in range(10):
        started = time.thread_time()
        for _ in range(repeats // 10):
            work()
        rounds.append((time.thread_time() - started) / (repeats // 10))
    return statistics.median(rounds)


def seconds_of_an_answer(port: int, repeats: int) -> float:
    """Return the processor time that this process spends on answering once for both pages."""
    started = time.process_time()
    subprocess.run([sys.executable, "-c", READER, str(port), str(repeats), "0"], check=True)
    return (time.process_time() - started) / repeats


def seconds_of_steps(publish: Publisher, port: int, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return the mean time of a step in each block, by kind."""
    step = step_of(arguments.step_seconds)
    num_steps = max(1, round(BLOCK_SECONDS / arguments.step_seconds))
    blocks: dict[str, list[float]] = {"none": [], "idle": [], "scraped": []}
    with subprocess.Popen([sys.executable, "-c", READER, str(port), "0", "1"]) as reader:
        until = time.monotonic() + arguments.seconds
        while time.monotonic() < until:
            for kind in random.sample(sorted(blocks), k=len(blocks)):
                reader.send_signal(signal.SIGCONT if kind == "scraped" else signal.SIGSTOP)
                started = time.monotonic()
                for _ in range(num_steps):
                    step()
                    if kind != "none":
                        publish()
                blocks[kind].append((time.monotonic() - started) / num_steps)
        reader.kill()
    return blocks


def step_of(seconds: float) -> Callable[[], None]:
    """Return work that takes about so long."""
    left, right = torch.randn(256, 512), torch.randn(512, 512)

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(left, right)

    multiply(200)
    started = time.monotonic()
    multiply(1000)
    times = max(1, round(1000 * seconds / (time.monotonic() - started)))
    return lambda: multiply(times)


if __name__ == "__main__":
    main()
