"""Amounts as a person reads them."""

from datetime import datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """Return a duration as kubectl writes it: `45s`, `12m30s`, `1h05m`, `3d04h`."""
    whole = max(0, round(seconds))
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02d}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02d}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02d}h"


def since(moment: str | datetime | None, now: datetime) -> str:
    """Return how long ago something was, nothing when it never was."""
    if moment is None:
        return ""
    then = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return duration((now - then).total_seconds())


def size(num_bytes: float) -> str:
    """Return a size in binary units: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def count(number: float) -> str:
    """Return a count in three digits or so: `512`, `114k`, `4.88M`, `8.03B`."""
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            scaled = number / factor
            return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.3g}{unit}"
    return f"{number:.0f}"


def hours(gpu_seconds: float) -> str:
    """Return GPU-hours: `0.04`, `12.5`, `1,204`."""
    value = gpu_seconds / _HOUR
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: `1 node`, `2 nodes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
