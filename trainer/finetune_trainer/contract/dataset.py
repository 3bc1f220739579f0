"""Where conversations come from: the entries of `datasets` and of `evaluation.datasets`."""

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from finetune_trainer.contract.group import RepositoryName, Revision, SharedPath, SpecModel


class HuggingFaceDataset(SpecModel):
    """A data set on the Hugging Face Hub."""

    repository: RepositoryName
    subset: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="Configuration of the data set, as its card names it. Needed when the card lists more than one.",
    )
    split: str = Field(default="train", min_length=1, max_length=255, description="Split to read.")
    revision: Revision = "main"


class DatasetFormat(StrEnum):
    """How a row spells a conversation."""

    HERMES = "hermes"
    GLAIVE = "glaive"
    OPENAI = "openai"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"


class ConversationSource(SpecModel):
    """Conversations: exactly one source, one format."""

    hugging_face: HuggingFaceDataset | None = Field(default=None, description="A data set on the Hugging Face Hub.")
    path: SharedPath | None = Field(
        default=None,
        description="A file, or a directory of files, on the shared filesystem: JSON Lines, JSON, CSV, "
        "Parquet or Arrow.",
        examples=["data/support-calls.jsonl"],
    )
    format: DatasetFormat = Field(
        description="How a row spells a conversation. `hermes`: `conversations` of `from`/`value` turns, tools in the "
        "system turn. `glaive`: `system` and `chat` texts. `openai`: `messages` with `tools` and `tool_calls`. "
        "`sharegpt`: `conversations` of `from`/`value` turns, `function_call` and `observation` among them, and "
        "`tools`. `alpaca`: `instruction`, `input` and `output`.",
    )
    max_samples: int | None = Field(
        default=None, ge=1, le=1_000_000_000, description="Use only the first rows of the data set, this many at most."
    )
    max_bad_row_percent: int = Field(
        default=1,
        ge=0,
        le=100,
        description="Share of rows that may be bad. Bad rows are dropped and counted by reason; more than this share "
        "fails the job before a GPU is held. Rows whose calls do not fit their tools are dropped and counted too, but "
        "fail the job only when they are more than half.",
    )

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        if (self.hugging_face is None) == (self.path is None):
            raise ValueError("set exactly one of huggingFace and path")
        return self


class Dataset(ConversationSource):
    """Conversations to train on: exactly one source, one format."""

    weight: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="How often a row is trained on in an epoch: 2 is twice, 0.5 is half of the rows, 1.5 is all of "
        "them and half of them again.",
    )


class EvaluationDataset(ConversationSource):
    """Conversations that base and tuned model are scored on: exactly one source, one format."""
