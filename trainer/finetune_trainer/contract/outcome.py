"""What is to become of a trained adapter: the groups `evaluation` and `export` of a spec."""

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from finetune_trainer.contract.dataset import EvaluationDataset
from finetune_trainer.contract.group import RepositoryName, SpecModel

_SHARE = r"(0(\.[0-9]+)?|1(\.0+)?)"
# Which way a bound points follows from the metric: nobody asks for at most 85 % accuracy.
_AT_LEAST_SHARE = rf"^>=? ?{_SHARE}$"
_AT_MOST_SHARE = rf"^<=? ?{_SHARE}$"
_AT_MOST = r"^<=? ?[0-9]+(\.[0-9]+)?$"


def _text(pattern: str) -> Any:
    """Return a field of whose pattern only the API server is told; people are told an example, by `_like`."""
    return Field(max_length=32, json_schema_extra={"pattern": pattern})


def _like(pattern: str, example: str) -> AfterValidator:
    def check(bound: str) -> str:
        if not re.fullmatch(pattern.strip("^$"), bound):
            raise ValueError(f"must be a bound like {example}")
        return bound

    return AfterValidator(check)


AtLeastShare = Annotated[str, _text(_AT_LEAST_SHARE), _like(_AT_LEAST_SHARE, '">= 0.85", between 0 and 1')]
AtMostShare = Annotated[str, _text(_AT_MOST_SHARE), _like(_AT_MOST_SHARE, '"<= 0.01", between 0 and 1')]
AtMost = Annotated[str, _text(_AT_MOST), _like(_AT_MOST, '"<= 1.5"')]


class Holdout(SpecModel):
    """Rows that training never sees."""

    share: float = Field(
        default=0.02,
        ge=0,
        le=0.5,
        description="Share of the rows that are held out. A row's own words decide, so it is on the same side in every "
        "job with the same share, and so are its duplicates.",
    )
    max_rows: int = Field(default=500, ge=0, le=100_000, description="Rows that are held out, at most.")


class Gate(SpecModel):
    """What the tuned model has to reach. A job that does not fails with reason GateNotMet and keeps its adapter."""

    function_accuracy: AtLeastShare | None = Field(
        default=None, description='Share of the calling turns that call just the right functions, e.g. `">= 0.85"`.'
    )
    exact_arguments: AtLeastShare | None = Field(
        default=None, description="Share of the calling turns whose calls are right in every argument."
    )
    argument_f1: AtLeastShare | None = Field(
        default=None, description="F1 of the arguments, value and type, mean over calling turns."
    )
    call_accuracy: AtLeastShare | None = Field(
        default=None, description="Share of the turns that call when they should, and answer when they should not."
    )
    valid_json: AtLeastShare | None = Field(
        default=None, description="Share of the turns that call in the notation of the model's template, unbroken."
    )
    hallucinated_functions: AtMostShare | None = Field(
        default=None,
        description='Share of the calling turns that call a function that is not among the tools, e.g. `"<= 0.01"`.',
    )
    loss: AtMost | None = Field(default=None, description='Loss on the held-out rows, e.g. `"<= 1.5"`.')
    perplexity: AtMost | None = Field(default=None, description="exp(loss) on the held-out rows.")
    improves_base: bool = Field(
        default=False,
        description="The tuned model must have a lower held-out loss than its base and, where held-out turns call "
        "functions, a higher function accuracy (or as high a one, where both are perfect).",
    )

    @property
    def is_set(self) -> bool:
        """Whether anything is asked for."""
        return self != Gate()


GATE_NEEDS_ROWS = (
    "a gate needs rows to score: leave enabled, and name datasets or leave holdout.share and holdout.maxRows above zero"
)


class Evaluation(SpecModel):
    """Base and tuned model are scored on rows that training never sees when the training is done."""

    enabled: bool = Field(
        default=True, description="`false` trains on every row and scores nothing; only without a gate."
    )
    datasets: tuple[EvaluationDataset, ...] = Field(
        default=(),
        max_length=16,
        description="Data sets to score on in place of rows held out of `datasets`, every row of them. Rows of the "
        "training's data sets with the same turns are left out of the training.",
    )
    holdout: Holdout = Field(
        default=Holdout(), description="Rows that training never sees; none where `datasets` names rows of their own."
    )
    max_turns: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="Turns of the assistant that are generated and scored for each model, at most; the rest of the "
        "held-out rows counts for the loss alone.",
    )
    max_new_tokens: int = Field(default=512, ge=1, le=32768, description="Tokens that a turn may have, at most.")
    batch_size: int = Field(default=16, ge=1, le=1024, description="Turns that are generated at once.")
    gate: Gate = Field(default=Gate(), description="What the tuned model has to reach.")

    @model_validator(mode="after")
    def _gate_is_measured(self) -> Self:
        has_rows = bool(self.datasets) or (self.holdout.share > 0 and self.holdout.max_rows > 0)
        if self.gate.is_set and not (self.enabled and has_rows):
            raise ValueError(GATE_NEEDS_ROWS)
        return self


class PushTo(SpecModel):
    """A repository on the Hugging Face Hub that the adapter is uploaded to; HF_TOKEN of the Secret has to let it."""

    repository: RepositoryName
    private: bool = Field(default=True, description="Whether a repository that has to be created is private.")


class Export(SpecModel):
    """What is made of the adapter besides itself and its model card."""

    merged: bool = Field(
        default=False,
        description="Write base and adapter as one model in the Hugging Face layout, as large as the base, too.",
    )
    push_to: PushTo | None = Field(
        default=None, description="Upload the adapter to the Hugging Face Hub when the gate, if any, is met."
    )
