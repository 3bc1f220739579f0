"""What a training that ended has left behind, read."""

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.trainer.scaling.cases import WARM_UP_STEPS, Case
from benchmarks.trainer.trace import read_trace

PHASES = ("compute", "data_wait", "communication", "checkpoint")
SLOW = 1.15  # times the median

Step = dict[str, Any]


def read_steps(logs: Path) -> list[Step]:
    """Return the lines of metrics.jsonl."""
    path = logs / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_figures(case: Case, logs: Path, prepared_file: Path, started: float) -> dict[str, Any]:
    """Return the figures of a case.

    Args:
        case: that was trained, and has done a step at least.
        logs: its directory on the network disk.
        prepared_file: the termination message of `prepare`.
        started: when its agents were started, in seconds since the epoch.
    """
    steps = read_steps(logs)
    steady = [step for step in steps if step["step"] > WARM_UP_STEPS and step["step"] not in case.odd_steps]
    steady = steady or steps[-1:]
    prepared = json.loads(prepared_file.read_text(encoding="utf-8"))["prepared"]
    lines = (logs / "training.log").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = {
        "tokens_per_second": round(statistics.median(step["tokens_per_second"] for step in steady)),
        "of_steps": len(steady),
        "mfu": steady[-1]["model_flops_utilization"],
        **{
            f"{name}_ms": round(1000 * statistics.median(step[f"{name}_seconds"] for step in steady), 2)
            for name in PHASES
        },
        "milliseconds_of_each_step": [round(1000 * step["seconds"]) for step in steps],
        "slow_steps": slow_steps(steps),
        "seconds_to_the_model": round(time_of(next(line for line in lines if "training " in line)) - started, 1),
        "seconds_to_the_first_step": round(steps[0]["timestamp_seconds"] - started, 1),
        "first_step_seconds": round(steps[0]["seconds"], 2),
        "kernels": prepared["kernels"],
        "estimated_gib": round(prepared["estimatedMemoryBytes"] / 2**30, 1),
        "losses": [round(step["loss"], 4) for step in steps],
        "told": [line for line in lines if "still for" in line or "profile" in line],
    }
    for trace in (logs / "profile").glob("*.json.gz"):
        found["trace"] = read_trace(trace)
    return found


def slow_steps(steps: Sequence[Step]) -> list[dict[str, float]]:
    """Return what went on in the steps, but the first, that took much longer than most."""
    later = steps[1:]
    if not later:
        return []
    usual = statistics.median(step["seconds"] for step in later)
    return [
        {"step": step["step"], "ms": round(1000 * step["seconds"])}
        | {f"{name}_ms": round(1000 * step[f"{name}_seconds"], 1) for name in PHASES}
        for step in later
        if step["seconds"] > SLOW * usual
    ]


def time_of(line: str) -> float:
    """Return when a line of training.log was written, in seconds since the epoch."""
    return datetime.fromisoformat(line.split()[0]).timestamp()


# --- samples ----------------------------------------------------------------------------------------------------------


def read_samples(path: Path, steps: Sequence[Step]) -> dict[str, Any]:
    """Return what a process' threads did while a checkpoint was written, and what before the first step.

    Args:
        path: what `benchmarks.trainer.scaling.sampled` has written of a process.
        steps: that were done; of the slow ones what the first thread did is told.
    """
    # The last line may be cut off where the process ended.
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:-1]]
    writing = [sample for sample in samples if _is_writing(sample)]
    ends = {step["step"]: step["timestamp_seconds"] for step in steps}
    slow = {
        step["step"]: Counter(
            f"{_first(sample)} | {_first(sample, 'checkpoint_0')}"
            for sample in samples
            if ends[step["step"]] - step["ms"] / 1000 < sample["at"] < ends[step["step"]]
        ).most_common(8)
        for step in slow_steps(steps)
    }
    first_step = steps[0]["timestamp_seconds"] - steps[0]["seconds"]
    others = [sample for sample in samples if sample["at"] > first_step and not _is_writing(sample)]
    return {
        "samples": len(samples),
        "while_a_checkpoint_is_written": {
            "samples": len(writing),
            "latest_ms": sorted((sample["late_ms"] for sample in writing), reverse=True)[:8],
            "writer": Counter(_first(sample, "checkpoint_0") for sample in writing).most_common(12),
        },
        "otherwise_latest_ms": sorted((sample["late_ms"] for sample in others), reverse=True)[:8],
        "slow_steps": slow,
        "before_the_first_step": Counter(
            _outermost_of_trainer(sample) for sample in samples if sample["at"] < first_step
        ).most_common(12),
    }


def _is_writing(sample: dict[str, Any]) -> bool:
    return "_copy_and_write" in str(sample["threads"].get("checkpoint_0"))


def _first(sample: dict[str, Any], thread: str = "MainThread") -> str:
    frames = sample["threads"].get(thread, ["nothing"])
    return str(frames[0])


def _outermost_of_trainer(sample: dict[str, Any]) -> str:
    """Return the frame of the trainer that called what the first thread does."""
    frames = sample["threads"].get("MainThread", ["nothing"])
    return str(next((frame for frame in frames if frame.startswith("finetune_trainer/")), frames[-1]))
