"""A line of a log, with the ranks that it comes from."""

from rich.text import Text

# Colours that are told apart on light and dark terminals; ranks take turns.
_STYLES = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")


def log_line(prefix: str, width: int, position: int, line: str) -> Text:
    """Return a line with what it comes from before it, in a colour of its own.

    Args:
        prefix: what it comes from; empty for no prefix.
        width: of the longest prefix.
        position: of its pod among the others.
        line: what the pod wrote.
    """
    # Programs colour their own lines; those codes are kept, and have no width.
    text = Text.from_ansi(line) if "\x1b" in line else Text(line)
    if not prefix:
        return text
    return Text.assemble((f"{prefix.ljust(width)} | ", _STYLES[position % len(_STYLES)]), text)
