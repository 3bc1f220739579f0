"""Bars and curves made of characters."""

import math
from collections.abc import Sequence
from itertools import pairwise

_BLOCKS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the last values as a curve of one line; values between two columns are averaged.

    A value that is no number leaves a gap, so that a loss that diverged is seen.
    """
    if not values or width < 1:
        return ""
    columns = _columns(values, width)
    finite = [value for value in columns if math.isfinite(value)]
    if not finite:
        return " " * len(columns)
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((value - low) / span * top)] if math.isfinite(value) else " " for value in columns)


def bar(ratio: float | None, width: int) -> str:
    """Return a bar that is filled to a share, to an eighth of a character; dots where it is not known."""
    if ratio is None or not math.isfinite(ratio):
        return "·" * width
    eighths = round(min(max(ratio, 0.0), 1.0) * width * 8)
    whole, rest = divmod(eighths, 8)
    filled = _EIGHTHS[8] * whole + (_EIGHTHS[rest] if rest else "")
    return filled + "─" * (width - len(filled))


def _columns(values: Sequence[float], width: int) -> list[float]:
    """Return at most `width` values, each the mean of those that fall together."""
    if len(values) <= width:
        return list(values)
    edges = [round(column * len(values) / width) for column in range(width + 1)]
    parts = [values[left:right] for left, right in pairwise(edges)]
    return [sum(part) / len(part) for part in parts]
