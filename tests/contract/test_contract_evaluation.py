"""The gate judges scores, and a report finds its way through a termination message."""

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.dataset import DatasetFormat, EvaluationDataset
from finetune_trainer.contract.evaluation import (
    EvaluationReport,
    Measure,
    Metric,
    Scores,
    ToolScores,
    check_gate,
    perplexity,
)
from finetune_trainer.contract.outcome import Evaluation, Gate, Holdout
from finetune_trainer.contract.termination import (
    MAX_BYTES,
    Reason,
    TerminationMessage,
    read_termination,
    write_termination,
)


def measure(value: float) -> Measure:
    return Measure(value=value, low=value - 0.05, high=value + 0.05, count=200)


BASE = Scores(loss=measure(2.0), function_accuracy=measure(0.1))
TUNED = Scores(loss=measure(1.2), perplexity=measure(3.32), function_accuracy=measure(0.85))
GATES: dict[str, tuple[dict[str, Any], bool]] = {
    "nothing is asked for": ({}, True),
    "just as good as asked for": ({"functionAccuracy": ">= 0.85"}, True),
    "as good as had to be surpassed": ({"functionAccuracy": "> 0.85"}, False),
    "a low loss": ({"loss": "<= 1.5"}, True),
    "a loss that is too high": ({"loss": "<1.2"}, False),
    "one of two is missed": ({"functionAccuracy": ">=0.8", "perplexity": "< 3"}, False),
    "better than the base": ({"improvesBase": True}, True),
    "a metric that could not be measured": ({"exactArguments": ">= 0"}, False),
}


@pytest.mark.parametrize(("gate", "met"), GATES.values(), ids=GATES.keys())
def test_a_gate_judges_the_tuned_model(gate: dict[str, Any], met: bool) -> None:
    assert all(result.met for result in check_gate(Gate.model_validate(gate), BASE, TUNED)) is met


def test_a_condition_tells_what_was_asked_for_and_what_was_found() -> None:
    [accuracy, better] = check_gate(Gate(function_accuracy=">= 0.9", improves_base=True), BASE, TUNED)
    assert accuracy.condition == "functionAccuracy >= 0.9"
    assert accuracy.found == "0.850 (95 % interval 0.800 to 0.900, n = 200)"
    assert better.found == "loss 2.000 -> 1.200, functionAccuracy 0.100 -> 0.850"


IMPROVEMENTS: dict[str, tuple[Scores, Scores, bool]] = {
    "a lower loss alone does not do where calls got worse": (
        BASE,
        Scores(loss=measure(1.0), function_accuracy=measure(0.05)),
        False,
    ),
    "better calls alone do not do where the loss rose": (
        BASE,
        Scores(loss=measure(2.1), function_accuracy=measure(0.9)),
        False,
    ),
    "without calls the loss decides": (Scores(loss=measure(2.0)), Scores(loss=measure(1.9)), True),
    "calls that were perfect may stay so": (
        Scores(loss=measure(2.0), function_accuracy=measure(1.0)),
        Scores(loss=measure(1.9), function_accuracy=measure(1.0)),
        True,
    ),
    "nothing was measured": (Scores(), Scores(), False),
}


@pytest.mark.parametrize(("base", "tuned", "met"), IMPROVEMENTS.values(), ids=IMPROVEMENTS.keys())
def test_a_tuned_model_improves_its_base_in_loss_and_calls(base: Scores, tuned: Scores, met: bool) -> None:
    [result] = check_gate(Gate(improves_base=True), base, tuned)
    assert result.met is met


def test_every_metric_can_be_gated_and_is_scored() -> None:
    names = {metric.value for metric in Metric}
    assert {field.alias for field in Gate.model_fields.values()} == names | {"improvesBase"}
    assert {field.alias for field in Scores.model_fields.values()} == names


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    assert perplexity(Measure(value=0.0, low=-1.0, high=1.0, count=3)).value == 1.0
    assert perplexity(Measure(value=1e9, low=1.0, high=1e9, count=3)).value < float("inf")


def test_a_job_is_evaluated_unless_it_says_otherwise_and_gated_only_if_it_says_so() -> None:
    evaluation = Evaluation()
    assert evaluation.enabled
    assert (evaluation.holdout.share, evaluation.holdout.max_rows) == (0.02, 500)
    assert not evaluation.gate.is_set


def test_a_gate_is_measured_on_data_sets_of_its_own_where_nothing_is_held_out() -> None:
    dev = EvaluationDataset(path="data/dev.jsonl", format=DatasetFormat.OPENAI)
    evaluation = Evaluation(datasets=(dev,), holdout=Holdout(share=0), gate=Gate(loss="<= 1.5"))
    assert evaluation.gate.is_set


def test_a_report_with_hundreds_of_tools_arrives_without_the_tools(tmp_path: Path) -> None:
    all_measured = Scores(**{field: measure(0.123456789) for field in Scores.model_fields})
    report = EvaluationReport(
        rows=500,
        turns=1000,
        calling_turns=400,
        base=all_measured,
        tuned=all_measured,
        tools=tuple(
            ToolScores(
                tool=f"function_{number}",
                turns=3,
                base_function_accuracy=0.0,
                tuned_function_accuracy=1.0,
                base_exact_arguments=0.0,
                tuned_exact_arguments=1.0,
            )
            for number in range(300)
        ),
        gate=check_gate(
            Gate(function_accuracy=">= 0.9", loss="<= 1.5", valid_json=">= 0.99", improves_base=True), BASE, TUNED
        ),
        gate_met=False,
        seconds=12.5,
        report_path="jobs/a-namespace/a-job/01234567-89ab-cdef-0123-456789abcdef/evaluation/evaluation.json",
    )
    message = TerminationMessage(reason=Reason.GATE_NOT_MET, message="gate", evaluated=report)
    write_termination(tmp_path / "log", message)
    assert (tmp_path / "log").stat().st_size <= MAX_BYTES
    read = read_termination((tmp_path / "log").read_text())
    assert read is not None
    assert read.evaluated == report.model_copy(update={"tools": ()})
