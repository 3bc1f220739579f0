"""The guide's pages as tests read them: blocks of code with their language, and the line that each begins at."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
# Design notes tell what was true on their day, the log what was run; both may name what is gone.
DATED = (DOCS / "design", DOCS / "LOG.md")

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\s*$")


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where a person finds it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Return the pages of the guide, and the README."""
    found = [page for page in sorted(DOCS.rglob("*.md")) if not any(page.is_relative_to(part) for part in DATED)]
    return [ROOT / "README.md", *found]


def blocks(language: str) -> list[Block]:
    """Return every block of a language."""
    return [block for page in pages() for block in _blocks(page) if block.language == language]


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```\s*$", "", text, flags=re.DOTALL | re.MULTILINE)


def _blocks(page: Path) -> Iterator[Block]:
    begun: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if begun is None and fence is not None:
            begun, lines = (number, fence["language"], fence["indent"]), []
        elif begun is not None and line.strip() == "```":
            start, language, _ = begun
            yield Block(page, start, language, "\n".join(lines) + "\n")
            begun = None
        elif begun is not None:
            lines.append(line.removeprefix(begun[2]))
