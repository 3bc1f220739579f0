"""A dashboard's panels as a picture (SVG), from what a Prometheus has: for where no Grafana is.

Titles, queries, units, stacking and widths are those of the dashboard; only the drawing is not Grafana's.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dev.dashboards.panels import Dashboard, Panel, Query, Unit
from dev.prometheus import Curve, Prometheus

_WIDTH, _COLUMN, _MARGIN = 1224, 50, 12
_ROW_HEIGHT, _PANEL_HEIGHT, _FIGURE_HEIGHT, _LINE = 26, 190, 76, 14
_COLOURS = (
    "#3274d9",
    "#e02f44",
    "#56a64b",
    "#ff780a",
    "#8f3bb8",
    "#37872d",
    "#c4162a",
    "#1f60c4",
    "#b877d9",
    "#fa6400",
)
_BINARY = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_STEPS_OF_A_CURVE = 150


@dataclass(frozen=True)
class Named:
    """A curve under the name that the legend gives it."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Drawn:
    """What a panel shows."""

    panel: Panel
    curves: Sequence[Named]


def collect(
    dashboard: Dashboard, prometheus: Prometheus, chosen: Mapping[str, str], start: float, end: float
) -> list[Drawn]:
    """Ask all queries of a dashboard over a time.

    Args:
        dashboard: whose panels.
        prometheus: to ask.
        chosen: values of the dashboard's variables, without their `$`.
        start: Unix time.
        end: Unix time.
    """
    step_seconds = max(1.0, (end - start) / _STEPS_OF_A_CURVE)
    variables = {
        "__rate_interval": f"{max(15, round(4 * step_seconds))}s",
        "__range": f"{round(end - start)}s",
        **chosen,
    }
    return [
        Drawn(panel, [named for query in panel.queries for named in _asked(query, prometheus, variables, start, end)])
        for panel in dashboard.panels
    ]


def _asked(
    query: Query, prometheus: Prometheus, variables: Mapping[str, str], start: float, end: float
) -> Iterator[Named]:
    expression = query.expression
    for name, value in variables.items():
        expression = expression.replace(f"${name}", value)
    for curve in prometheus.query_range(expression, start, end, max(1.0, (end - start) / _STEPS_OF_A_CURVE)):
        points = [(time, value) for time, value in curve.points if math.isfinite(value)]
        if points:
            yield Named(_legend(query.legend, curve), points)


def _legend(template: str, curve: Curve) -> str:
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: curve.labels.get(found.group(1), ""), template)


def draw(dashboard: Dashboard, drawn: Sequence[Drawn], start: float, end: float, caption: str) -> str:
    """Return the page as SVG."""
    by_title = {found.panel.title: found for found in drawn}
    parts, top = [], 64
    for row in dashboard.rows:
        parts.append(_text(_MARGIN, top + 18, row.title, size=14, weight="bold"))
        top += _ROW_HEIGHT
        left = height = 0
        for panel in row.panels:
            if left + panel.width > 24:
                top, left = top + height + 8, 0
            height = _FIGURE_HEIGHT if panel.is_figure else _PANEL_HEIGHT
            box = Box(_MARGIN + left * _COLUMN, top, panel.width * _COLUMN - 8, height)
            found = by_title[panel.title]
            parts += _draw_figure(found, box) if panel.is_figure else _draw_panel(found, box, start, end)
            left += panel.width
        top += height + 10
    heading = [
        _text(_MARGIN, 28, dashboard.title, size=20, weight="bold"),
        _text(_MARGIN, 48, caption, size=12, colour="#666"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" '
        'font-family="Helvetica, Arial, sans-serif">\n'
        f'<rect width="{_WIDTH}" height="{top}" fill="#f4f5f5"/>\n' + "\n".join(heading + parts) + "\n</svg>\n"
    )


@dataclass(frozen=True)
class Box:
    """A rectangle on the page."""

    left: float
    top: float
    width: float
    height: float


def _draw_figure(drawn: Drawn, box: Box) -> list[str]:
    parts = [_frame(box), _text(box.left + 8, box.top + 18, drawn.panel.title, size=12, weight="bold")]
    newest = [_written(curve.points[-1][1], drawn.panel.unit) for curve in drawn.curves]
    figure = " / ".join(newest) if newest else "No data"
    return [*parts, _text(box.left + box.width / 2, box.top + 54, figure, size=24, anchor="middle")]


def _draw_panel(drawn: Drawn, box: Box, start: float, end: float) -> list[str]:
    parts = [_frame(box), _text(box.left + 8, box.top + 18, drawn.panel.title, size=12, weight="bold")]
    if not drawn.curves:
        why = "No data: needs a GPU, and this run had none" if drawn.panel.needs_gpu else "No data"
        return [*parts, _text(box.left + box.width / 2, box.top + box.height / 2, why, anchor="middle", colour="#888")]
    curves = _stacked(drawn.curves) if drawn.panel.is_stacked else drawn.curves
    legend = _legend_lines([curve.name for curve in curves], box.width - 16)
    area = Box(box.left + 62, box.top + 28, box.width - 74, box.height - 28 - 22 - _LINE * len(legend))
    low, high, ticks = _scale(drawn.panel, curves)

    def place(time: float, value: float) -> tuple[float, float]:
        x = area.left + (time - start) / (end - start) * area.width
        return x, area.top + area.height * (1 - (value - low) / (high - low))

    for tick in ticks:
        y = place(start, tick)[1]
        parts.append(f'<path d="M{area.left:.1f} {y:.1f}h{area.width:.1f}" stroke="#e4e5e6"/>')
        parts.append(
            _text(area.left - 6, y + 4, _written(tick, drawn.panel.unit), size=10, anchor="end", colour="#555")
        )
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        seconds = share * (end - start)
        label = f"{int(seconds // 60)}:{int(seconds % 60):02d}"
        x = area.left + share * area.width
        anchor = "end" if share == 1 else "middle"
        parts.append(_text(x, area.top + area.height + 13, label, size=10, anchor=anchor, colour="#555"))
    # Of stacked curves the highest first: what is below each belongs to the next.
    for index, curve in reversed(list(enumerate(curves))):
        places = [place(*point) for point in curve.points]
        path = " ".join(f"{x:.1f} {y:.1f}" for x, y in places)
        colour = _COLOURS[index % len(_COLOURS)]
        if drawn.panel.is_stacked:
            ends = f"{places[-1][0]:.1f} {area.top + area.height:.1f} {places[0][0]:.1f} {area.top + area.height:.1f}"
            for fill in ("#fff", f"{colour}55"):
                parts.append(f'<polygon points="{path} {ends}" fill="{fill}"/>')
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    return parts + _draw_legend(legend, [curve.name for curve in curves], box)


def _stacked(curves: Sequence[Named]) -> list[Named]:
    """Return each curve on top of those before it; one that has no value at a time adds nothing there."""
    times = sorted({time for curve in curves for time, _ in curve.points})
    heights = dict.fromkeys(times, 0.0)
    stacked = []
    for curve in curves:
        for time, value in curve.points:
            heights[time] += value
        stacked.append(Named(curve.name, list(heights.items())))
    return stacked


def _scale(panel: Panel, curves: Sequence[Named]) -> tuple[float, float, list[float]]:
    """Return the lowest and the highest value of a panel's axis, and where it is marked."""
    values = [value for curve in curves for _, value in curve.points]
    low = min(values) if panel.minimum is None else panel.minimum
    high = max(values) if panel.maximum is None else panel.maximum
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = _round_step((high - low) / 4, binary=panel.unit in (Unit.BYTES, Unit.BYTES_PER_SECOND))
    low = math.floor(low / step) * step
    high = math.ceil(high / step - 1e-9) * step
    return low, high, [low + step * index for index in range(round((high - low) / step) + 1)]


def _round_step(step: float, binary: bool) -> float:
    """Return a step of an axis that is easy to read, and no smaller."""
    if binary and step >= 1:
        return next(nice * 1024.0**power for power in range(6) for nice in _BINARY if nice * 1024**power >= step)
    power = 10.0 ** math.floor(math.log10(step))
    return next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= step - 1e-12)


def _written(value: float, unit: Unit) -> str:
    """Return a value with its unit, as short as Grafana writes it."""
    if unit is Unit.RATIO:
        return f"{value * 100:.3g}%"
    if unit is Unit.SCIENTIFIC:
        return "0" if value == 0 else f"{value:.1e}"
    if unit in (Unit.BYTES, Unit.BYTES_PER_SECOND):
        exponent = min(int(math.log(max(abs(value), 1), 1024)), 4)
        suffix = ("B", "KiB", "MiB", "GiB", "TiB")[exponent] + ("/s" if unit is Unit.BYTES_PER_SECOND else "")
        return f"{value / 1024**exponent:.3g} {suffix}"
    if unit is Unit.SECONDS:
        if abs(value) >= 120:
            return f"{value / 60:.3g} min"
        return f"{value:.3g} s" if abs(value) >= 1 or value == 0 else f"{value * 1000:.3g} ms"
    if abs(value) >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:.4g}"


def _legend_lines(names: Sequence[str], width: float) -> list[list[int]]:
    """Return which curves' names stand in which line."""
    lines: list[list[int]] = [[]]
    used = 0.0
    for index, name in enumerate(names):
        needed = _name_width(name)
        if lines[-1] and used + needed > width:
            lines.append([])
            used = 0.0
        lines[-1].append(index)
        used += needed
    return lines


def _draw_legend(lines: Sequence[Sequence[int]], names: Sequence[str], box: Box) -> list[str]:
    parts = []
    for number, line in enumerate(lines):
        x, y = box.left + 10, box.top + box.height - 6 - _LINE * (len(lines) - 1 - number)
        for index in line:
            colour = _COLOURS[index % len(_COLOURS)]
            parts.append(f'<path d="M{x:.1f} {y - 3.5:.1f}h12" stroke="{colour}" stroke-width="2.5"/>')
            parts.append(_text(x + 16, y, names[index], size=10, colour="#444"))
            x += _name_width(names[index])
    return parts


def _name_width(name: str) -> float:
    return 30 + 5.6 * len(name)


def _frame(box: Box) -> str:
    return (
        f'<rect x="{box.left:g}" y="{box.top:g}" width="{box.width:g}" height="{box.height:g}" rx="2" fill="#fff" '
        'stroke="#dcdde0"/>'
    )


def _text(
    x: float, y: float, text: str, size: int = 12, anchor: str = "start", colour: str = "#222", weight: str = "normal"
) -> str:
    look = f'font-size="{size}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(text)}</text>'
