"""What can be read of a training while it runs: the series of its exporters, and the lines of its log. Pure."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from finetune_trainer.contract import series

# `finetune_trainer.runlog.describe_step`.
_STEP_LINE = re.compile(r"^step (?P<step>\d+)/\d+ +loss (?P<loss>\S+) ")


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one moment."""

    index: int
    utilization: float | None
    """Share of time in which a kernel ran."""
    memory_bytes: float | None


@dataclass(frozen=True)
class NodeReading:
    """The exporter of one node at one moment; what only rank 0 knows is None elsewhere."""

    gpus: tuple[GpuReading, ...] = ()
    step: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class EventView:
    """An Event about a job or something of it."""

    time: str
    kind: str
    """Normal or Warning."""
    reason: str
    message: str


def read_series(page: str) -> NodeReading:
    """Read the page of an exporter; what cannot be read is left out."""
    values: dict[str, float] = {}
    by_gpu: dict[str, dict[str, float]] = {}
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if "gpu" in sample.labels:
                    by_gpu.setdefault(sample.labels["gpu"], {})[sample.name] = sample.value
                elif not sample.labels:
                    values[sample.name] = sample.value
    except ValueError:
        return NodeReading()
    gpus = (
        GpuReading(int(gpu), found.get(series.GPU_UTILIZATION_RATIO), found.get(series.GPU_MEMORY_USED_BYTES))
        for gpu, found in by_gpu.items()
        if gpu.isdecimal()
    )
    step = values.get(series.STEP)
    return NodeReading(
        gpus=tuple(sorted(gpus, key=lambda gpu: gpu.index)),
        step=None if step is None else int(step),
        loss=values.get(series.LOSS),
        tokens_per_second=values.get(series.TOKENS_PER_SECOND),
    )


def losses_in_log(lines: Iterable[str]) -> dict[int, float]:
    """Return the loss of each step that a log tells of; of a step that was done again, the last."""
    losses: dict[int, float] = {}
    for line in lines:
        if found := _STEP_LINE.match(line):
            losses = with_loss(losses, int(found["step"]), _number(found["loss"]))
    return losses


def with_loss(losses: Mapping[int, float], step: int, loss: float) -> dict[int, float]:
    """Return the curve with one more step; what an earlier attempt did after that step is forgotten."""
    return {known: value for known, value in losses.items() if known < step} | {step: loss}


def see_event(body: Mapping[str, Any]) -> EventView:
    """Return an Event as it is shown."""
    return EventView(
        time=str(body.get("eventTime") or body.get("lastTimestamp") or body["metadata"]["creationTimestamp"]),
        kind=str(body.get("type") or ""),
        reason=str(body.get("reason") or ""),
        message=" ".join(str(body.get("message") or "").split()),
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
