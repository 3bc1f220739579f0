"""What the groups of a manifest are made of."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
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

Revision = Annotated[
    str,
    Field(
        min_length=1,
        max_length=255,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
        description="Branch, tag or commit. It is pinned to a commit when the job is prepared.",
    ),
]


def _stays_inside(path: str) -> str:
    if path.startswith("/"):
        raise ValueError("is relative to the root of the shared filesystem: leave the leading / out")
    if ".." in path.split("/"):
        raise ValueError("may not contain '..'")
    return path


SharedPath = Annotated[
    str,
    Field(min_length=1, max_length=1024, description="Path on the shared filesystem, relative to its root."),
    AfterValidator(_stays_inside),
]
