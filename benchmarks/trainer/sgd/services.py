"""Scores of calling turns, by whether the training has seen the services of their dialogue."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Sums = dict[str, list[float]]


def services_of(path: Path) -> list[frozenset[str]]:
    """Return the services of each row of a file."""
    with path.open(encoding="utf-8") as lines:
        return [frozenset(json.loads(line)["services"]) for line in lines]


def score_by_services(turns: Iterable[tuple[Path, Path]], trained: Path) -> dict[str, dict[str, float]]:
    """Return of base and tuned model the share of calling turns with right functions, and with right arguments.

    Args:
        turns: for each part of the scored rows: turns.jsonl of the evaluation, and the file of the rows.
        trained: the file of rows that were trained on.
    """
    seen = frozenset().union(*services_of(trained))
    sums: dict[str, Sums] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    counts: dict[str, int] = defaultdict(int)
    for turns_path, rows_path in turns:
        services = services_of(rows_path)
        with turns_path.open(encoding="utf-8") as lines:
            for turn in map(json.loads, lines):
                if turn["expected"]["calls"]:
                    row = services[_row_number(turn) - 1]
                    for group in ("all", _group(row, seen), *sorted(row)):
                        counts[group] += 1
                        _add(sums[group], turn)
    return {group: _shares(of_group, counts[group]) for group, of_group in sums.items()}


def _row_number(turn: dict[str, Any]) -> int:
    found = re.search(r", row (\d+), turn \d+$", turn["row"])
    assert found is not None, turn["row"]
    return int(found[1])


def _group(services: frozenset[str], seen: frozenset[str]) -> str:
    if services <= seen:
        return "services seen"
    return "some services seen" if services & seen else "services unseen"


def _add(sums: Sums, turn: dict[str, Any]) -> None:
    for model in ("base", "tuned"):
        sums[model][0] += turn[model]["functions_right"]
        sums[model][1] += turn[model]["exact"]


def _shares(sums: Sums, count: int) -> dict[str, float]:
    shares: dict[str, float] = {"turns": count}
    for model, (functions, exact) in sums.items():
        shares |= {f"{model} functions": round(functions / count, 4), f"{model} exact": round(exact / count, 4)}
    return shares
