"""What a model is worth: the metrics, their values for base and tuned, and whether the gate is met.

A metric is measured on held-out rows. `count` is of what it is a mean over: turns of the assistant that it applies to,
or tokens for the loss. The interval is a bootstrap over rows, as the turns of one conversation are not independent.
"""

import math
import re
from enum import StrEnum

from pydantic import Field

from finetune_trainer.contract.outcome import Gate
from finetune_trainer.contract.report import Report


class Metric(StrEnum):
    """What is measured, by the name that reports and gates give it."""

    LOSS = "loss"
    PERPLEXITY = "perplexity"
    FUNCTION_ACCURACY = "functionAccuracy"
    EXACT_ARGUMENTS = "exactArguments"
    ARGUMENT_F1 = "argumentF1"
    CALL_ACCURACY = "callAccuracy"
    VALID_JSON = "validJson"
    HALLUCINATED_FUNCTIONS = "hallucinatedFunctions"


class Measure(Report):
    """A metric's value."""

    value: float = Field(description="The mean.")
    low: float = Field(description="Lower end of the 95 % bootstrap interval.")
    high: float = Field(description="Upper end of the 95 % bootstrap interval.")
    count: int = Field(description="Turns, or tokens, that it is a mean over.")


class Scores(Report):
    """What one model reaches. A metric is missing where nothing held out lets it be measured."""

    loss: Measure | None = Field(default=None, description="Mean loss of the assistant's tokens.")
    perplexity: Measure | None = Field(default=None, description="exp(loss).")
    function_accuracy: Measure | None = Field(
        default=None, description="Of the turns that should call: share that call just the right functions."
    )
    exact_arguments: Measure | None = Field(
        default=None, description="Of the turns that should call: share whose calls are right in every argument."
    )
    argument_f1: Measure | None = Field(
        default=None, description="Of the turns that should call: mean F1 of the arguments."
    )
    call_accuracy: Measure | None = Field(
        default=None, description="Of all turns: share that call when they should and answer when they should not."
    )
    valid_json: Measure | None = Field(
        default=None, description="Of the turns that call: share that keep the notation of the model's template."
    )
    hallucinated_functions: Measure | None = Field(
        default=None, description="Of the turns that call: share that call a function that is not among the tools."
    )

    def measure(self, metric: Metric) -> Measure | None:
        """Return the value of a metric, or None where it could not be measured."""
        found: Measure | None = getattr(self, _FIELDS[metric])
        return found


# Field of each metric in Scores and in Gate.
_FIELDS = {Metric(field.alias): name for name, field in Scores.model_fields.items() if field.alias}


class ToolScores(Report):
    """How well one function is called."""

    tool: str = Field(description="Name of the function.")
    turns: int = Field(description="Scored turns that should call it.")
    base_function_accuracy: float = Field(description="Share of them in which the base calls it.")
    tuned_function_accuracy: float = Field(description="Share of them in which the tuned model calls it.")
    base_exact_arguments: float = Field(description="Share of them in which the base calls it with right arguments.")
    tuned_exact_arguments: float = Field(description="The same of the tuned model.")


class GateResult(Report):
    """Whether one condition of the gate is met."""

    condition: str = Field(description="As the manifest has it, for example `functionAccuracy >= 0.85`.")
    met: bool = Field(description="Whether it is met.")
    found: str = Field(description="What was measured.")


class EvaluationReport(Report):
    """Base and tuned model on the same held-out rows."""

    rows: int = Field(description="Held-out rows.")
    turns: int = Field(description="Turns of the assistant that were generated and scored.")
    calling_turns: int = Field(description="Those of them that should call functions.")
    base: Scores = Field(description="What the base model reaches.")
    tuned: Scores = Field(description="What the tuned model reaches.")
    tools: tuple[ToolScores, ...] = Field(default=(), description="By function, the most frequent first.")
    gate: tuple[GateResult, ...] = Field(default=(), description="The conditions of the gate.")
    gate_met: bool = Field(description="Whether all of them are met.")
    seconds: float = Field(description="Time that scoring took.")
    report_path: str = Field(description="The whole report, relative to the shared filesystem's root.")
    notes: tuple[str, ...] = Field(default=(), description="What a reader has to know.")


class ExportReport(Report):
    """What was made of the adapter."""

    model_card_path: str = Field(description="The model card, relative to the shared filesystem's root.")
    merged_path: str | None = Field(default=None, description="Directory of the merged model, relative to the same.")
    merged_bytes: int | None = Field(default=None, description="Size of the merged model's weights.")
    merged_digest: str | None = Field(default=None, description="`sha256:` digest of the merged model's manifest.json.")
    pushed_to: str | None = Field(default=None, description="Where it was uploaded to: repository@commit.")


def check_gate(gate: Gate, base: Scores, tuned: Scores) -> tuple[GateResult, ...]:
    """Judge the scores by a gate; conditions come in the order of the manifest's documentation.

    A metric that nothing held out lets be measured does not meet a bound.
    """
    results = []
    for metric, field in _FIELDS.items():
        bound: str | None = getattr(gate, field)
        if bound is not None:
            results.append(_bound_result(metric, bound, tuned.measure(metric)))
    if gate.improves_base:
        results.append(_improvement_result(base, tuned))
    return tuple(results)


def _bound_result(metric: Metric, bound: str, measure: Measure | None) -> GateResult:
    parsed = re.fullmatch(r"([<>]=?) ?([0-9.]+)", bound)
    assert parsed is not None, f"the models let {bound!r} pass"
    sign, limit = parsed[1], float(parsed[2])
    condition = f"{metric} {sign} {parsed[2]}"
    if measure is None:
        return GateResult(condition=condition, met=False, found="not measured: no held-out turn lets it be")
    value = measure.value
    met = {">=": value >= limit, ">": value > limit, "<=": value <= limit, "<": value < limit}[sign]
    return GateResult(condition=condition, met=met, found=_told(measure))


def _improvement_result(base: Scores, tuned: Scores) -> GateResult:
    met, found = True, []
    if base.loss is not None and tuned.loss is not None:
        met = tuned.loss.value < base.loss.value
        found.append(f"loss {base.loss.value:.3f} -> {tuned.loss.value:.3f}")
    before, after = base.function_accuracy, tuned.function_accuracy
    if before is not None and after is not None:
        met = met and (after.value > before.value or before.value == after.value == 1)
        found.append(f"functionAccuracy {before.value:.3f} -> {after.value:.3f}")
    return GateResult(condition="improvesBase", met=met and bool(found), found=", ".join(found) or "not measured")


def _told(measure: Measure) -> str:
    return f"{measure.value:.3f} (95 % interval {measure.low:.3f} to {measure.high:.3f}, n = {measure.count})"


def perplexity(loss: Measure) -> Measure:
    """Return exp of a loss and of its interval."""
    value, low, high = (math.exp(min(number, 700.0)) for number in (loss.value, loss.low, loss.high))
    return Measure(value=value, low=low, high=high, count=loss.count)
