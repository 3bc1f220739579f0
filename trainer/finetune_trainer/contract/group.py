"""What the groups of a manifest are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class SpecModel(BaseModel):
    """A group of fields of a manifest: camelCase in YAML, immutable in Python, unknown fields refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


RepositoryName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=193,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="Repository on the Hugging Face Hub, as `owner/name`.",
        examples=["meta-llama/Llama-3.1-8B-Instruct"],
    ),
]
