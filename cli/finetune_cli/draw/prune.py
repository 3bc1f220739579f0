"""What `prune` shows: every entry of a cache, how large it is, and what becomes of it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from finetune_cli import amounts
from finetune_cli.draw.columns import columns

_STYLES = {"unused": "yellow", "removed": "green", "kept": "dim", "busy": "cyan"}


@dataclass(frozen=True)
class Entry:
    """A directory of the cache, as `finetune_trainer.prune` tells of it."""

    path: str
    num_bytes: int
    fate: str
    why: str

    @property
    def is_unused(self) -> bool:
        """Whether it could be removed."""
        return self.fate == "unused"

    def document(self) -> dict[str, Any]:
        """Return it as data."""
        return {"path": self.path, "bytes": self.num_bytes, "fate": self.fate, "why": self.why}


def read_entries(lines: Iterable[str]) -> list[Entry]:
    """Read what the trainer printed: a JSON document a line, among lines for people."""
    entries = []
    for line in lines:
        if line.startswith("{"):
            told = json.loads(line)
            entries.append(Entry(told["path"], told["bytes"], told["fate"], told["why"]))
    return entries


def draw_entries(entries: Sequence[Entry], *, removed: bool) -> Text:
    """Return a table of them, and how much it is together."""
    if not entries:
        return Text("The cache is empty.")
    rows = [
        (entry.path, amounts.size(entry.num_bytes), Text(entry.fate, style=_STYLES.get(entry.fate, "")), entry.why)
        for entry in entries
    ]
    fate = "removed" if removed else "unused"
    chosen = [entry for entry in entries if entry.fate == fate]
    total = amounts.size(sum(entry.num_bytes for entry in chosen))
    entries_word = "1 entry" if len(chosen) == 1 else f"{len(chosen)} entries"
    return Text.assemble(columns(("entry", "size", "fate", ""), rows), f"\n\n{entries_word} {fate}: {total}")
