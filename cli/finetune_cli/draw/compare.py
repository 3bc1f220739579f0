"""What `compare` shows: the fields in which two recipes differ, and what came of each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.text import Text

from finetune_cli import amounts
from finetune_cli.draw.columns import columns
from finetune_cli.draw.cost import cost_of
from finetune_cli.jobs import Job

Pair = tuple[str, str]
_MISSING = "-"
_MAX_CHARACTERS = 60


@dataclass(frozen=True)
class Comparison:
    """Two jobs, by what is compared."""

    names: Pair
    recipe: Mapping[str, Pair]
    outcome: Mapping[str, Pair]
    evaluation: Mapping[str, Pair]


def make_comparison(
    jobs: tuple[Job, Job], specs: tuple[Mapping[str, Any], Mapping[str, Any]], *, all_fields: bool
) -> Comparison:
    """Compare two jobs.

    Args:
        jobs: the two.
        specs: theirs, every default written out.
        all_fields: keep fields that are equal.
    """
    one, other = (dict(_flat(spec, "")) for spec in specs)
    recipe = {
        field: (one.get(field, _MISSING), other.get(field, _MISSING))
        for field in dict.fromkeys([*one, *other])
        if all_fields or one.get(field) != other.get(field)
    }
    return Comparison(
        names=(jobs[0].name, jobs[1].name),
        recipe=recipe,
        outcome=_side_by_side(_outcome(jobs[0]), _outcome(jobs[1])),
        evaluation=_side_by_side(_evaluation(jobs[0]), _evaluation(jobs[1])),
    )


def draw_comparison(comparison: Comparison) -> Text:
    """Return three tables: the recipe, the outcome, the evaluation."""
    parts = [
        ("recipe", comparison.recipe),
        ("outcome", comparison.outcome),
        ("evaluation of the tuned model", comparison.evaluation),
    ]
    tables = [
        columns((title, *comparison.names), [(field, *(_cut(value) for value in pair)) for field, pair in rows.items()])
        for title, rows in parts
        if rows
    ]
    if not comparison.recipe:
        tables.insert(0, Text("The recipes are equal."))
    return Text("\n\n").join(tables)


def compare_documents(comparison: Comparison) -> dict[str, Any]:
    """Return the same as data."""

    def rows(values: Mapping[str, Pair]) -> dict[str, dict[str, str]]:
        return {field: dict(zip(comparison.names, pair, strict=True)) for field, pair in values.items()}

    return {
        "recipe": rows(comparison.recipe),
        "outcome": rows(comparison.outcome),
        "evaluation": rows(comparison.evaluation),
    }


def _flat(value: Any, path: str) -> Iterator[Pair]:
    """Yield the fields of a spec by their dotted paths."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for position, item in enumerate(value):
            yield from _flat(item, f"{path}[{position}]")
    elif isinstance(value, list):
        yield path, ", ".join(str(item) for item in value)
    else:
        yield path, str(value)


def _outcome(job: Job) -> dict[str, str]:
    status, told = job.status, {"phase": job.phase}
    if status.plan is not None:
        told |= {"tokens an epoch": amounts.count(status.plan.tokens), "total steps": str(status.plan.total_steps)}
    if status.result is not None:
        result = status.result
        told |= {
            "first loss": f"{result.first_loss:.4f}",
            "final loss": f"{result.final_loss:.4f}",
            "tokens/s": amounts.count(result.tokens_per_second),
        }
    elif status.progress is not None and status.progress.loss is not None:
        told |= {"step": status.progress.steps, "loss": f"{status.progress.loss:.4f}"}
    if status.completion_time is not None:
        told["took"] = amounts.since(job.created, datetime.fromisoformat(status.completion_time))
    told["restarts"] = str(status.restarts)
    cost = cost_of(job, None)
    told["GPU-hours" if job.on_gpus else "process-hours"] = amounts.hours(cost.used)
    if cost.money is not None:
        told["cost"] = f"{cost.money:,.2f} {cost.currency}".strip()
    return told


def _evaluation(job: Job) -> dict[str, str]:
    report = None if job.status.result is None else job.status.result.evaluation
    if report is None:
        return {}
    tuned = report.tuned.model_dump(by_alias=True, exclude_none=True)
    scores = {
        name: f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})" for name, score in tuned.items()
    }
    return scores | {"held-out rows": str(report.rows)}


def _side_by_side(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, Pair]:
    fields = dict.fromkeys([*one, *other])
    return {field: (one.get(field, _MISSING), other.get(field, _MISSING)) for field in fields}


def _cut(value: str) -> str:
    return value if len(value) <= _MAX_CHARACTERS else value[: _MAX_CHARACTERS - 3] + "..."
