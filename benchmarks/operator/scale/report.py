"""The figures as a person reads them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.operator.scale.measurements import Burst, Deletion, Reached, Writes, without_background
from benchmarks.operator.scale.operator_run import Quiet, Restart

_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class OperatorFigures:
    """All that is measured of this project's operator in one run."""

    single: Mapping[str, Reached]
    burst: Burst
    requests: Writes
    """The operator's own requests in the burst, by verb and resource."""
    quiet: Quiet
    restart: Restart
    deletion: Deletion


@dataclass(frozen=True)
class PeerFigures:
    """What is measured of the training-operator."""

    burst: Burst
    deletion: Deletion


def single_text(single: Mapping[str, Reached]) -> str:
    """Return the figures of jobs that came one at a time."""
    return "\n".join(["one at a time, idle operator:", *_milestones(single)])


def requests_text(requests: Writes) -> str:
    """Return what the operator asked of the API server in a burst."""
    return f"its own requests: {_counts(requests)}"


def quiet_text(quiet: Quiet) -> str:
    """Return what the operator does while nothing changes."""
    return (
        f"quiet for {quiet.seconds:.0f} s with all running: {quiet.num_writes} writes, {quiet.num_requests} "
        f"requests, {quiet.cpu_share:.2%} of a core"
    )


def restart_text(restart: Restart) -> str:
    """Return what a restart costs."""
    return (
        f"restart: ready after {restart.ready_seconds:.1f} s, settled after {restart.settled_seconds:.1f} s with "
        f"{restart.cpu_seconds:.1f} CPU s and {restart.num_writes} writes, "
        f"{restart.peak_memory_bytes / _MEBIBYTE:.0f} MiB"
    )


def burst_text(name: str, burst: Burst) -> str:
    """Return the figures of a burst."""
    cpu_seconds = burst.cpu_seconds[name]
    others = ", ".join(f"{program} {used:.1f}" for program, used in burst.cpu_seconds.items() if program != name)
    lines = [
        f"{name}, {burst.num_jobs} jobs at once: created in {burst.created_seconds:.1f} s",
        *_milestones(burst.reached),
        f"  {name} {cpu_seconds:.1f} CPU s ({cpu_seconds / burst.num_jobs * 1000:.1f} ms a job), "
        f"{burst.peak_memory_bytes / _MEBIBYTE:.0f} MiB; CPU s of the others: {others}",
        f"  writes of all clients: {_counts(without_background(burst.writes))}",
    ]
    return "\n".join(lines)


def as_document(figures: OperatorFigures | PeerFigures) -> dict[str, Any]:
    """Return the figures as JSON can hold them."""
    document = asdict(figures)
    document["burst"]["writes"] = _by_name(figures.burst.writes)
    if isinstance(figures, OperatorFigures):
        document["requests"] = _by_name(figures.requests)
    return document


def deletion_text(deletion: Deletion) -> str:
    """Return how long it takes until all is gone."""
    return (
        f"deletion: jobs gone after {deletion.jobs_seconds:.1f} s, all they owned after {deletion.all_seconds:.1f} s, "
        f"operator {deletion.cpu_seconds:.1f} CPU s"
    )


def _milestones(reached: Mapping[str, Reached]) -> list[str]:
    return [
        f"  {milestone}: last after {when.last_seconds:.1f} s; from apply p50 {when.p50_seconds:.3f} s, "
        f"p95 {when.p95_seconds:.3f} s"
        for milestone, when in reached.items()
    ]


def _counts(requests: Writes) -> str:
    return ", ".join(f"{name} {count}" for name, count in _by_name(requests).items())


def _by_name(requests: Writes) -> dict[str, int]:
    return {f"{verb} {resource}": count for (verb, resource), count in sorted(requests.items()) if count}
