"""Tables and lists as kubectl prints them: no frames, columns that are as wide as their widest cell."""

from collections.abc import Sequence

from rich.text import Text

from finetune_operator.api.status import Phase

_GAP = "   "
_PHASE_STYLES = {
    Phase.SUCCEEDED: "green",
    Phase.FAILED: "red",
    Phase.RUNNING: "cyan",
    Phase.EVALUATING: "cyan",
    Phase.RESTARTING: "yellow",
    Phase.PENDING: "yellow",
    Phase.SUSPENDED: "dim",
}


def phase_style(phase: str) -> str:
    """Return the colour of a phase."""
    return _PHASE_STYLES.get(Phase(phase), "") if phase in set(Phase) else ""


def columns(heads: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Text:
    """Return a table: heads in capitals, cells to the left, no space at the end of a line."""
    cells = [[_text(head.upper(), "bold") for head in heads], *([_text(cell) for cell in row] for row in rows)]
    widths = [max(row[column].cell_len for row in cells) for column in range(len(heads))]
    lines = []
    for row in cells:
        line = Text()
        for cell, width in zip(row, widths, strict=True):
            line.append_text(cell)
            line.append(" " * (width - cell.cell_len) + _GAP)
        line.rstrip()
        lines.append(line)
    return Text("\n").join(lines)


def facts(pairs: Sequence[tuple[str, str | Text]]) -> Text:
    """Return names and values, a line each; what has no value is left out, further lines are indented."""
    shown = [(name, _text(value)) for name, value in pairs if str(value)]
    width = max((len(name) for name, _ in shown), default=0)
    lines = []
    for name, value in shown:
        first, *further = value.split("\n")
        lines.append(Text.assemble((name.ljust(width), "bold"), "  ", first))
        lines += [Text.assemble(" " * width, "  ", line) for line in further]
    return Text("\n").join(lines)


def _text(cell: str | Text, style: str = "") -> Text:
    return cell if isinstance(cell, Text) else Text(cell, style=style)
