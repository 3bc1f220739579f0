"""What a dashboard shows: rows of panels, each with the queries that fill it. Grafana is not named here."""

from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    """Units, by the names that Grafana has for them."""

    NONE = "short"
    SECONDS = "s"
    BYTES = "bytes"
    BYTES_PER_SECOND = "binBps"
    RATIO = "percentunit"
    SCIENTIFIC = "sci"
    PER_SECOND = "cps"


@dataclass(frozen=True)
class Query:
    """An expression, and how its series are called: `{{label}}` stands for a label's value."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """Curves over time, or the newest value in large figures."""

    title: str
    description: str
    unit: Unit
    queries: tuple[Query, ...]
    width: int = 8
    """Of 24 columns."""
    is_figure: bool = False
    is_stacked: bool = False
    minimum: float | None = None
    maximum: float | None = None
    needs_gpu: bool = False
    """Whether there is nothing to see where no GPU trains."""


def figure(title: str, description: str, unit: Unit, *queries: Query, width: int = 4, of_one: bool = False) -> Panel:
    """Return a panel with the newest values in large figures; `of_one` are shares."""
    ends = (0.0, 1.0) if of_one else (None, None)
    return Panel(title, description, unit, queries, width, is_figure=True, minimum=ends[0], maximum=ends[1])


def counts(title: str, description: str, unit: Unit, *queries: Query, width: int = 8, stacked: bool = False) -> Panel:
    """Return a panel with curves of what cannot be less than nothing."""
    return Panel(title, description, unit, queries, width, is_stacked=stacked, minimum=0)


def shares(title: str, description: str, *queries: Query, width: int = 8) -> Panel:
    """Return a panel with curves between nothing and all."""
    return Panel(title, description, Unit.RATIO, queries, width, minimum=0, maximum=1)


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """What a person chooses at the top of a dashboard."""

    name: str
    label: str
    query: str


@dataclass(frozen=True)
class Dashboard:
    """A page."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    hours: int
    """How far it looks back at first."""

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, as they are read."""
        return tuple(panel for row in self.rows for panel in row.panels)
