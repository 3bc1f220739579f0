"""The picture of a dashboard: what is drawn is what was measured, and what was not is said to be missing."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from dev.dashboards import DASHBOARDS
from dev.dashboards.panels import Dashboard, Panel, Query, Row, Unit
from dev.dashboards.picture import Drawn, Named, draw

SVG = "{http://www.w3.org/2000/svg}"


def page_of(panel: Panel) -> Dashboard:
    return Dashboard("uid", "Title", "", (), (Row("Row", (panel,)),), hours=1)


def panel_of(unit: Unit = Unit.NONE, **changes: bool) -> Panel:
    return Panel("Panel", "What it is.", unit, (Query("up", "curve"),), minimum=0, **changes)


def drawn(panel: Panel, *curves: Named) -> ElementTree.Element:
    return ElementTree.fromstring(draw(page_of(panel), [Drawn(panel, curves)], 0, 100, "caption"))


def texts(picture: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in picture.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_of_a_dashboard_is_drawn_and_says_so_where_it_has_no_data(name: str) -> None:
    page = DASHBOARDS[name]
    picture = ElementTree.fromstring(draw(page, [Drawn(panel, ()) for panel in page.panels], 0, 100, "caption"))
    shown = texts(picture)
    assert {panel.title for panel in page.panels} <= set(shown)
    assert sum(text.startswith("No data") for text in shown) == len(page.panels)
    assert sum("needs a GPU" in text for text in shown) == sum(panel.needs_gpu for panel in page.panels)


def test_a_curve_rises_where_its_values_do() -> None:
    picture = drawn(panel_of(), Named("curve", [(0, 1.0), (50, 3.0), (100, 2.0)]))
    (line,) = picture.iter(f"{SVG}polyline")
    ys = [float(value) for value in line.attrib["points"].split()[1::2]]
    assert ys[1] < ys[2] < ys[0]


def test_stacked_curves_stand_on_each_other() -> None:
    lower, upper = Named("lower", [(0, 1.0), (100, 1.0)]), Named("upper", [(0, 2.0), (100, 2.0)])
    picture = drawn(panel_of(is_stacked=True), lower, upper)
    high, low = (float(line.attrib["points"].split()[1]) for line in picture.iter(f"{SVG}polyline"))
    marks = {
        text.text: float(text.attrib["y"]) - 4 for text in picture.iter(f"{SVG}text") if (text.text or "").isdigit()
    }
    assert high == pytest.approx(marks["3"], abs=0.11)
    assert low == pytest.approx(marks["1"], abs=0.11)


@pytest.mark.parametrize(
    ("unit", "value", "written"),
    [
        (Unit.RATIO, 0.425, "42.5%"),
        (Unit.BYTES, 3 * (1 << 30), "3 GiB"),
        (Unit.BYTES_PER_SECOND, 1536.0, "1.5 KiB/s"),
        (Unit.SECONDS, 0.25, "250 ms"),
        (Unit.SECONDS, 90.0, "90 s"),
        (Unit.SECONDS, 600.0, "10 min"),
        (Unit.SCIENTIFIC, 0.0002, "2.0e-04"),
        (Unit.NONE, 16300.0, "16.3k"),
    ],
)
def test_figures_are_written_with_their_unit(unit: Unit, value: float, written: str) -> None:
    assert written in texts(drawn(panel_of(unit, is_figure=True), Named("curve", [(0, 0.0), (100, value)])))


@pytest.mark.parametrize("unit", [Unit.BYTES, Unit.NONE])
@pytest.mark.parametrize("highest", [0.003, 0.7, 3.0, 999.0, 1023.0, 1_000_000.0, 5e9])
def test_an_axis_has_two_to_six_marks_and_holds_the_curve(unit: Unit, highest: float) -> None:
    picture = drawn(panel_of(unit), Named("curve", [(0, 0.0), (100, highest)]))
    marks = [path for path in picture.iter(f"{SVG}path") if path.attrib["stroke"] == "#e4e5e6"]
    assert 2 <= len(marks) <= 6
    (line,) = picture.iter(f"{SVG}polyline")
    top = min(float(re.findall(r"[\d.]+", mark.attrib["d"])[1]) for mark in marks)
    assert float(line.attrib["points"].split()[3]) >= top - 0.11
