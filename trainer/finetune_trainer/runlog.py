"""The two log files of a run: training.log for people, metrics.jsonl for programs."""

import json
import math
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from finetune_trainer.metrics import StepRecord
from finetune_trainer.storage import storage_errors

TRAINING_LOG = "training.log"
METRICS_FILE = "metrics.jsonl"


class RunLog:
    """The two log files of a run, kept open by global rank 0 alone; lines go to standard output as well.

    Args:
        directory: where the files are; made when it is not there.
        resumed_step: step that the run goes on from, or 0. Lines of metrics.jsonl after it belong to steps that are
            done again, and are dropped.

    Raises:
        TrainerError: STORAGE_FULL or STORAGE_NOT_WRITABLE, here and when writing.
    """

    def __init__(self, directory: Path, resumed_step: int) -> None:
        self._directory = directory
        with storage_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            _keep_steps(directory / METRICS_FILE, resumed_step)
            self._lines = (directory / TRAINING_LOG).open("a", encoding="utf-8")
            self._records = (directory / METRICS_FILE).open("a", encoding="utf-8")

    def say(self, line: str) -> None:
        """Write a line with the time to training.log, and without it to standard output."""
        print(line, file=sys.stdout, flush=True)
        with storage_errors(self._directory):
            self._lines.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")
            self._lines.flush()

    def record_step(self, record: StepRecord) -> None:
        """Write a step to metrics.jsonl."""
        with storage_errors(self._directory):
            self._records.write(json.dumps(asdict(record)) + "\n")
            self._records.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing writes what could not be written before, and fails as that did.
        with storage_errors(self._directory), self._lines, self._records:
            pass


def describe_step(record: StepRecord, steps_total: int, seconds_a_step: float) -> str:
    """Return a step as a line for people."""
    left = timedelta(seconds=round((steps_total - record.step) * seconds_a_step))
    ratio = record.model_flops_utilization
    utilization = "" if ratio is None else f"  mfu {ratio:.1%}"
    return (
        f"step {record.step}/{steps_total}  loss {record.loss:.4f}  lr {record.learning_rate:.1e}  "
        f"grad norm {record.gradient_norm:.2f}  {record.tokens_per_second:.0f} tokens/s{utilization}  "
        f"{_describe_waits(record)}eta {left}"
    )


def _describe_waits(record: StepRecord) -> str:
    """Return what took a hundredth of the time or more, besides computing; a checkpoint's may lie before the step."""
    waits = {
        "data": record.data_wait_seconds,
        "communication": record.communication_seconds,
        "checkpoint": record.checkpoint_seconds,
    }
    total = record.compute_seconds + sum(waits.values())
    return "".join(f"{name} {wait / total:.0%}  " for name, wait in waits.items() if wait >= total / 100)


def _keep_steps(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    # A process that was killed while it wrote leaves half a line, a node that lost its power anything at all.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= last_step]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)


def _step_of(line: str) -> float:
    """Return the step that a line of metrics.jsonl tells of, infinity where it is no whole line."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf
