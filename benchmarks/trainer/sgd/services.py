"""Scores of calling turns, by whether the training has seen the services of their dialogue."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from finetune_trainer.evaluate.statistics import measure_ratio

SEED = 0
MODELS = ("base", "tuned")
MERITS = {"functions": "functions_right", "exact": "exact"}

Merits = list[float]  # of one row: those of MODELS times MERITS, summed over its calling turns, and their number


def services_of(path: Path) -> list[frozenset[str]]:
    """Return the services of each row of a file."""
    with path.open(encoding="utf-8") as lines:
        return [frozenset(json.loads(line)["services"]) for line in lines]


def score_by_services(turns: Iterable[tuple[Path, Path]], trained: Path) -> dict[str, dict[str, Any]]:
    """Return of base and tuned model the share of calling turns with right functions, and with right arguments.

    Each share is followed by the ends of its 95 % interval, found by drawing rows again and again.

    Args:
        turns: for each part of the scored rows: turns.jsonl of the evaluation, and the file of the rows.
        trained: the file of rows that were trained on.
    """
    seen = frozenset().union(*services_of(trained))
    groups: dict[str, dict[tuple[Path, int], Merits]] = defaultdict(
        lambda: defaultdict(lambda: [0.0] * (len(MODELS) * len(MERITS) + 1))
    )
    for turns_path, rows_path in turns:
        services = services_of(rows_path)
        with turns_path.open(encoding="utf-8") as lines:
            for turn in map(json.loads, lines):
                if turn["expected"]["calls"]:
                    number = _row_number(turn)
                    row = services[number - 1]
                    for group in ("all", _group(row, seen), *sorted(row)):
                        _add(groups[group][rows_path, number], turn)
    return {group: _shares(np.array(list(rows.values()))) for group, rows in groups.items()}


def _row_number(turn: dict[str, Any]) -> int:
    found = re.search(r", row (\d+), turn \d+$", turn["row"])
    assert found is not None, turn["row"]
    return int(found[1])


def _group(services: frozenset[str], seen: frozenset[str]) -> str:
    if services <= seen:
        return "services seen"
    return "some services seen" if services & seen else "services unseen"


def _add(merits: Merits, turn: dict[str, Any]) -> None:
    found = [turn[model][merit] for model in MODELS for merit in MERITS.values()]
    for place, merit in enumerate([*found, 1.0]):
        merits[place] += merit


def _shares(rows: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> dict[str, Any]:
    counts = rows[:, -1]
    shares: dict[str, Any] = {"dialogues": len(rows), "turns": round(counts.sum())}
    names = [f"{model} {merit}" for model in MODELS for merit in MERITS]
    for place, name in enumerate(names):
        measure = measure_ratio(rows[:, place], counts, SEED)
        assert measure is not None
        shares[name] = [round(number, 4) for number in (measure.value, measure.low, measure.high)]
    return shares
