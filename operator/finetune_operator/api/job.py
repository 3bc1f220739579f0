"""A FineTuneJob as the API server hands it out."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from finetune_operator import names
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.errors import InvalidJob
from finetune_trainer.contract.job import TrainerJob, describe_problems


def _is_job_name(name: str) -> str:
    if len(name) > names.MAX_LABEL_CHARACTERS or not re.fullmatch(names.JOB_NAME_PATTERN, name):
        raise ValueError(names.JOB_NAME_RULE)
    return name


JobName = Annotated[str, AfterValidator(_is_job_name)]


class Metadata(BaseModel):
    """The part of an object's metadata that the operator reads."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    name: JobName
    namespace: str = "default"
    uid: str = "local"
    generation: int = 1
    labels: dict[str, str] = {}


class FineTuneJob(BaseModel):
    """A FineTuneJob: who it is, what its user wrote, what we told so far."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    metadata: Metadata
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = FineTuneJobStatus()

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> "FineTuneJob":
        """Make a FineTuneJob of the object that the API server sent, or of a manifest.

        Raises:
            InvalidJob: with every problem and its field path.
        """
        if body.get("apiVersion") != names.API_VERSION or body.get("kind") != names.KIND:
            raise InvalidJob([f"is no FineTuneJob: expected apiVersion: {names.API_VERSION} and kind: {names.KIND}"])
        try:
            return cls.model_validate(dict(body))
        except ValidationError as error:
            problems = describe_problems(error, cls, prefix="")
            raise InvalidJob([problem.removeprefix(".") for problem in problems]) from error

    def with_status(self, status: FineTuneJobStatus) -> "FineTuneJob":
        """Return the same job after more was told of it."""
        return self.model_copy(update={"status": status})

    def trainer_job(self) -> TrainerJob:
        """Return the part of the job that the trainer reads."""
        return TrainerJob(
            name=self.metadata.name,
            namespace=self.metadata.namespace,
            uid=self.metadata.uid,
            spec=self.spec.trainer_spec(),
        )
