"""Bars, curves, amounts and tables made of characters."""

import math
from datetime import UTC, datetime

import pytest
from rich.text import Text

from finetune_cli import amounts
from finetune_cli.draw.columns import columns, facts
from finetune_cli.draw.logs import log_line
from finetune_cli.draw.shapes import bar, sparkline


def test_a_curve_goes_from_its_highest_to_its_lowest_value() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 8) == "█▇▆▅▄▃▂▁"


def test_a_long_curve_is_averaged_into_the_room_that_there_is() -> None:
    assert sparkline([10, 0, 10, 0, 0, 0, 0, 0], 4) == "██▁▁"


def test_a_flat_curve_lies_at_the_bottom() -> None:
    assert sparkline([2.5, 2.5, 2.5], 10) == "▁▁▁"


def test_a_loss_that_is_no_number_leaves_a_gap() -> None:
    assert sparkline([2.0, math.nan, 1.0], 10) == "█ ▁"
    assert sparkline([math.nan, math.inf], 10) == "  "


def test_no_values_and_no_room_draw_nothing() -> None:
    assert sparkline([], 10) == ""
    assert sparkline([1.0], 0) == ""


@pytest.mark.parametrize(
    ("ratio", "drawn"),
    [(0.0, "────"), (0.5, "██──"), (1.0, "████"), (0.28125, "█▏──"), (7.0, "████"), (-1.0, "────"), (None, "····")],
)
def test_a_bar_is_filled_to_an_eighth_of_a_character(ratio: float | None, drawn: str) -> None:
    assert bar(ratio, 4) == drawn


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0s"), (59.4, "59s"), (60, "1m00s"), (750, "12m30s"), (3900, "1h05m"), (273_600, "3d04h"), (-5, "0s")],
)
def test_durations_are_written_as_kubectl_writes_them(seconds: float, written: str) -> None:
    assert amounts.duration(seconds) == written


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, "0"), (512, "512"), (1234, "1.23k"), (114_000, "114k"), (4_884_480, "4.88M"), (8_030_261_248, "8.03B")],
)
def test_counts_have_three_digits(number: float, written: str) -> None:
    assert amounts.count(number) == written


@pytest.mark.parametrize(
    ("num_bytes", "written"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (85_899_345_920, "80.0 GiB"), (2 * 1024**4, "2.0 TiB")],
)
def test_sizes_are_in_binary_units(num_bytes: float, written: str) -> None:
    assert amounts.size(num_bytes) == written


@pytest.mark.parametrize(("gpu_seconds", "written"), [(36, "0.01"), (45_000, "12.5"), (4_334_400, "1,204")])
def test_gpu_hours_are_as_precise_as_they_are_small(gpu_seconds: float, written: str) -> None:
    assert amounts.hours(gpu_seconds) == written


def test_an_age_is_the_time_since_then_and_nothing_where_there_is_no_then() -> None:
    now = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)
    assert amounts.since("2026-11-27T11:47:30Z", now) == "12m30s"
    assert amounts.since(None, now) == ""


def test_a_table_has_heads_in_capitals_and_no_space_at_the_end_of_a_line() -> None:
    table = columns(("name", "phase"), [("a", "Running"), ("longer-name", Text("Failed", style="red"))])
    assert table.plain == "NAME          PHASE\na             Running\nlonger-name   Failed"


def test_a_fact_without_a_value_is_left_out_and_a_second_line_is_indented() -> None:
    assert facts([("Name", "calls"), ("Reason", ""), ("Checkpoint", "step 4\npath")]).plain == (
        "Name        calls\nCheckpoint  step 4\n            path"
    )


def test_a_log_line_has_its_ranks_before_it_in_a_column() -> None:
    assert log_line("rank 0", 10, 0, "step 1/8").plain == "rank 0     | step 1/8"
    assert log_line("", 10, 0, "step 1/8").plain == "step 1/8"


def test_colours_that_a_program_wrote_itself_do_not_reach_the_screen_as_text() -> None:
    assert log_line("rank 0", 6, 0, "\x1b[31mbad\x1b[0m").plain == "rank 0 | bad"
