"""Scores and their intervals."""

import math

import numpy as np
import pytest

from finetune_trainer.data.conversation import ToolCall
from finetune_trainer.evaluate.comparison import judge
from finetune_trainer.evaluate.statistics import Judged, make_scores, measure_ratio, score_tools
from finetune_trainer.toolcalls import ParsedTurn

WEATHER, TIME = ToolCall("weather", {"city": "Paris"}), ToolCall("time", {})
TOOLS = frozenset({"weather", "time"})
RIGHT = judge([WEATHER], ParsedTurn("", (WEATHER,)), TOOLS)
HALF_RIGHT = judge([WEATHER], ParsedTurn("", (ToolCall("weather", {"city": "Oslo"}),)), TOOLS)
BROKEN = judge([WEATHER], ParsedTurn("", (), ("{",)), TOOLS)
SILENT = judge([WEATHER], ParsedTurn("It rains."), TOOLS)
ANSWER = judge([], ParsedTurn("Hello."), TOOLS)
STRANGE = judge([], ParsedTurn("", (ToolCall("rain", {}),)), TOOLS)


def test_every_metric_is_a_mean_over_the_turns_that_it_applies_to() -> None:
    turns = [RIGHT, HALF_RIGHT, BROKEN, SILENT, ANSWER, STRANGE]
    scores = make_scores(Judged(turns, [0, 0, 1, 1, 2, 2], np.array([3.0, 2.0, 1.0]), np.array([2.0, 1.0, 1.0])), 0)
    values = {
        name: (round(measure.value, 4), measure.count)
        for name in scores.model_fields_set
        if (measure := getattr(scores, name))
    }
    assert values == {
        "function_accuracy": (0.5, 4),
        "exact_arguments": (0.25, 4),
        "argument_f1": (0.25, 4),
        "call_accuracy": (round(4 / 6, 4), 6),
        "valid_json": (0.75, 4),
        "hallucinated_functions": (0.25, 4),
        "loss": (1.5, 4),
        "perplexity": (round(math.exp(1.5), 4), 4),
    }


def test_what_cannot_be_measured_is_missing() -> None:
    scores = make_scores(Judged([ANSWER], [0], np.zeros(1), np.zeros(1)), 0)
    assert (scores.function_accuracy, scores.valid_json, scores.loss, scores.perplexity) == (None, None, None, None)
    assert scores.call_accuracy is not None


def test_an_interval_is_about_as_wide_as_theory_has_it() -> None:
    random = np.random.default_rng(5)
    hits = (random.random(400) < 0.8).astype(float)
    measure = measure_ratio(hits, np.ones(400), seed=1)
    assert measure is not None
    half_width = 1.96 * math.sqrt(measure.value * (1 - measure.value) / 400)
    assert measure.low == pytest.approx(measure.value - half_width, abs=0.008)
    assert measure.high == pytest.approx(measure.value + half_width, abs=0.008)


def test_turns_of_one_row_do_not_count_as_independent() -> None:
    row_hits = np.array([0.0, 10.0] * 20)  # of ten turns each row has all right, or none
    together = measure_ratio(row_hits, np.full(40, 10.0), seed=1)
    apart = measure_ratio(np.array([0.0, 1.0] * 200), np.ones(400), seed=1)
    assert together is not None
    assert apart is not None
    assert (together.value, together.count) == (apart.value, apart.count) == (0.5, 400)
    assert together.high - together.low > 2.5 * (apart.high - apart.low)


def test_the_same_seed_gives_the_same_interval() -> None:
    losses, tokens = np.linspace(1, 2, 50), np.linspace(3, 9, 50)
    measures = [measure_ratio(losses, tokens, seed) for seed in (1, 1, 2)]
    assert measures[0] == measures[1] != measures[2]


def test_one_row_has_an_interval_of_no_width() -> None:
    measure = measure_ratio(np.array([3.0]), np.array([4.0]), seed=0)
    assert measure is not None
    assert (measure.value, measure.low, measure.high) == (0.75, 0.75, 0.75)


def test_functions_are_scored_one_by_one_the_most_frequent_first() -> None:
    time_missed = judge([TIME], ParsedTurn("no"), TOOLS)
    base, tuned = (
        [SILENT, SILENT, time_missed, ANSWER],
        [RIGHT, HALF_RIGHT, judge([TIME], ParsedTurn("", (TIME,)), TOOLS), ANSWER],
    )
    [weather, time] = score_tools(base, tuned)
    assert (weather.tool, weather.turns, time.tool, time.turns) == ("weather", 2, "time", 1)
    assert (weather.base_function_accuracy, weather.tuned_function_accuracy) == (0.0, 1.0)
    assert (weather.base_exact_arguments, weather.tuned_exact_arguments) == (0.0, 0.5)
    assert (time.tuned_function_accuracy, time.tuned_exact_arguments) == (1.0, 1.0)
