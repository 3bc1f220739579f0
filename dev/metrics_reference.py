"""The reference page of all Prometheus series, made from the tables from which the exporters make them."""

from collections.abc import Iterator, Sequence

from finetune_operator.metrics import SERIES
from finetune_trainer.contract.series import METRICS_PATH, METRICS_PORT, OF_NODE, OF_RANK_ZERO, PROGRESS_PATH, Series

_INTRODUCTION = """# Metrics

Generated from the series that the operator (`finetune_operator.metrics`) and the trainer
(`finetune_trainer.contract.series`) make their instruments of.

Every name has the prefix `finetune_` and a base unit; labels are bounded, and no job is named in them: Prometheus adds
the pod and the namespace. [Monitoring](../operator/monitoring.md) says what the chart brings that makes use of them,
and what a step's time goes to."""


def metrics_page() -> str:
    """Return the page: the operator's series, and those of the training pods by who serves them."""
    lines = [
        _INTRODUCTION,
        "",
        "## The operator, port 8080, `/metrics`",
        "",
        *_table(SERIES),
        "",
        "Besides, `process_cpu_seconds_total`, `process_resident_memory_bytes` and so on, as every Prometheus client",
        "tells them.",
        "",
        f"## Training pods, port {METRICS_PORT} (`metrics`), `{METRICS_PATH}`",
        "",
        "### The training, from global rank 0",
        "",
        *_table(OF_RANK_ZERO),
        "",
        "### Each node, from one process of it",
        "",
        *_table(OF_NODE),
        "",
        f"Rank 0 serves how far the training has come under `{PROGRESS_PATH}` on the same port, as one JSON document",
        "(step, epoch, loss, newest checkpoint with its digest, damaged checkpoints); 404 before the first step",
        "begins. The operator reads this one.",
    ]
    return "\n".join(lines) + "\n"


def _table(series: Sequence[Series]) -> Iterator[str]:
    yield "| series | type | what it says |"
    yield "|---|---|---|"
    for one in series:
        labels = f"{{{','.join(one.labels)}}}" if one.labels else ""
        yield f"| `{one.name}{labels}` | {one.type} | {one.meaning} |"
