"""The table of docs/LOG.md, made of what the faults' tests have kept.

python -m tests.e2e.faults.table            # the newest outcome of each fault
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tests.e2e.faults.outcome import RESULTS

HEADER = ("what happens", "back-end", "how the attempts ended", "trains again after", "steps lost", "ends")


def make_table(lines: Iterable[str]) -> str:
    """Return a Markdown table; of several outcomes of a fault the last one counts."""
    newest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for line in lines:
        outcome = json.loads(line)
        key = (outcome["fault"], outcome["backend"])
        newest.pop(key, None)
        newest[key] = outcome
    rows = [HEADER, ("---",) * len(HEADER), *(_row(outcome) for outcome in newest.values())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(outcome: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = outcome["seconds_to_recover"]
    return (
        outcome["fault"],
        outcome["backend"],
        ", ".join(outcome["reasons"]),
        "" if seconds is None else f"{seconds:.0f} s",
        str(outcome["steps_lost"]),
        outcome["phase"],
    )


if __name__ == "__main__":
    print(make_table(RESULTS.read_text(encoding="utf-8").splitlines()))
