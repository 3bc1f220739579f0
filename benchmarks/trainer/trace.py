"""What a Chrome trace of `training.profile` says of a GPU: how long it computed, exchanged, and stood still.

python -m benchmarks.trainer.trace steps-10-11.json.gz
"""

import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Span = tuple[float, float]  # begin and end, in microseconds
Event = dict[str, Any]
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
BYTES_OF_TYPES = {"Byte": 1, "Char": 1, "BFloat16": 2, "Half": 2, "Float": 4, "Int": 4, "Double": 8, "Long": 8}
# Copies of shares between GPUs: they count as copies within one where the other's memory is mapped into this one.
SMALLEST_SHARE_BYTES = 1 << 18


def main() -> int:
    """Print the figures of a trace as JSON."""
    print(json.dumps(read_trace(Path(sys.argv[1])), indent=1))
    return 0


def read_trace(path: Path) -> dict[str, Any]:
    """Return what the GPU did, in milliseconds of the whole trace, and what was exchanged."""
    with gzip.open(path) as file:
        events: list[Event] = json.load(file)["traceEvents"]
    on_gpu = [event for event in events if event.get("cat") in ON_GPU]
    exchanges: dict[str, list[Event]] = defaultdict(list)
    computing = []
    for event in on_gpu:
        kind = kind_of_exchange(event)
        (exchanges[kind] if kind else computing).append(event)
    exchanging = union(span for some in exchanges.values() for span in map(span_of, some))
    busy = union(map(span_of, computing))
    everything = union([*exchanging, *busy])
    return {
        "span_ms": milliseconds([(everything[0][0], everything[-1][1])] if everything else []),
        "computing_ms": milliseconds(busy),
        "exchanging_ms": milliseconds(exchanging),
        "exchanging_alone_ms": round(milliseconds(everything) - milliseconds(busy), 3),
        "idle_ms": round((everything[-1][1] - everything[0][0]) / 1000 - milliseconds(everything), 3)
        if everything
        else 0.0,
        "exchanges": {
            kind: {
                "times": len(some),
                "ms": milliseconds(union(map(span_of, some))),
                "gigabytes": round(sum(map(bytes_of, some)) / 1e9, 3),
            }
            for kind, some in sorted(exchanges.items())
        },
        "longest_kernels_ms": longest(computing),
    }


def kind_of_exchange(event: Event) -> str | None:
    """Return what a kernel or a copy exchanges with other processes, None where it computes."""
    name, arguments = event["name"], event.get("args", {})
    if "nccl" in name.lower():
        return str(arguments.get("Collective name") or name.split("(")[0])
    if "Memcpy PtoP" in name or ("Memcpy DtoD" in name and arguments.get("bytes", 0) >= SMALLEST_SHARE_BYTES):
        return name
    return None


def bytes_of(event: Event) -> float:
    """Return what a process gets by an exchange: the larger of what goes in and what comes out."""
    arguments = event.get("args", {})
    if "bytes" in arguments:
        return float(arguments["bytes"])
    numbers = max(float(arguments.get("In msg nelems", 0)), float(arguments.get("Out msg nelems", 0)))
    return numbers * BYTES_OF_TYPES.get(str(arguments.get("dtype")), 0)


def span_of(event: Event) -> Span:
    """Return when an event was."""
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])


def union(spans: Iterable[Span]) -> list[Span]:
    """Return spans that overlap as one."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    return merged


def milliseconds(spans: Iterable[Span]) -> float:
    """Return how long spans that do not overlap are together."""
    return round(sum(end - begin for begin, end in spans) / 1000, 3)


def longest(events: Iterable[Event], count: int = 12) -> dict[str, float]:
    """Return the kernels that took the most time together."""
    totals: dict[str, float] = defaultdict(float)
    for event in events:
        totals[event["name"][:80]] += float(event["dur"]) / 1000
    return {name: round(total, 2) for name, total in sorted(totals.items(), key=lambda item: -item[1])[:count]}


if __name__ == "__main__":
    sys.exit(main())
