"""What we tell: the status of a FineTuneJob."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_trainer.contract.evaluation import EvaluationReport, ExportReport
from finetune_trainer.contract.termination import PreparedReport, Reason, TrainedReport

# What is kept in a status, which is read and written whole: the newest of them.
MAX_ATTEMPTS = 100
MAX_DAMAGED_CHECKPOINTS = 20


class StatusModel(BaseModel):
    """A group of status fields: camelCase in YAML, immutable in Python; fields of another version are passed over."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Phase(StrEnum):
    """Where a job stands, in one word."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    STARTING = "Starting"
    RUNNING = "Running"
    EVALUATING = "Evaluating"
    RESTARTING = "Restarting"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """The questions that conditions answer."""

    ACCEPTED = "Accepted"
    PREPARED = "Prepared"
    RUNNING = "Running"
    EVALUATED = "Evaluated"
    STORAGE_PRESSURE = "StoragePressure"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class ConditionStatus(StrEnum):
    """The answers of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(StatusModel):
    """One answer, in the shape of metav1.Condition."""

    type: ConditionType = Field(description="What the condition says something about.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        description="Why, in a word.",
    )
    message: str = Field(max_length=32768, description="Why, in a sentence, and what to do.")
    observed_generation: int = Field(ge=0, description="Generation of the spec that it was made from.")
    last_transition_time: str = Field(
        json_schema_extra={"format": "date-time"}, description="When status last changed."
    )


class Progress(StatusModel):
    """How far the training is, as rank 0 tells it."""

    step: int = Field(ge=0, description="Steps done.")
    total_steps: int = Field(ge=0, description="Steps of the whole run.")
    steps: str = Field(description="`step/totalSteps`, for kubectl get.")
    epoch: int = Field(ge=0, description="Epoch that the step belongs to, from 1.")
    loss: float | None = Field(default=None, description="Loss of the last step.")
    loss_text: str | None = Field(default=None, description="The loss with three decimals, for kubectl get.")
    learning_rate: float | None = Field(default=None, description="Learning rate of the last step.")
    tokens_per_second: float | None = Field(default=None, description="Throughput of all processes.")
    last_step_time: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When the last step ended."
    )
    eta: str | None = Field(default=None, description="Time left, for example `1h05m`.")


class Attempt(StatusModel):
    """One gang of pods."""

    number: int = Field(ge=1, description="Attempts are counted from 1.")
    started: str = Field(json_schema_extra={"format": "date-time"}, description="When its pods were made.")
    ended: str | None = Field(
        default=None,
        json_schema_extra={"format": "date-time"},
        description="When it was known that it had ended: a pod of it had failed, or all were done.",
    )
    reason: str | None = Field(default=None, max_length=256, description="Why it ended, in a word.")
    message: str | None = Field(default=None, max_length=32768, description="What was seen that tells so.")
    resumed_from_step: int | None = Field(
        default=None, ge=0, description="Step of the checkpoint that it went on from; 0 is the very start."
    )
    last_step: int | None = Field(default=None, ge=0, description="Last step that it was seen to do.")
    steps_lost: int | None = Field(
        default=None, ge=0, description="Steps after the last checkpoint, which the next attempt has to do again."
    )


class Failure(StatusModel):
    """A time that preparing broke off."""

    time: str = Field(json_schema_extra={"format": "date-time"}, description="When it was known.")
    reason: str = Field(max_length=256, description="Why, in a word.")
    message: str = Field(max_length=32768, description="What was seen that tells so.")


class Checkpoint(StatusModel):
    """The newest complete checkpoint."""

    step: int = Field(ge=0, description="Step that it was written after.")
    time: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When it was complete."
    )
    path: str | None = Field(
        default=None, max_length=4096, description="Its directory, relative to the shared filesystem's root."
    )
    bytes: int | None = Field(default=None, ge=0, description="Size of its files.")
    digest: str | None = Field(default=None, max_length=256, description="`sha256:` digest of its manifest.")


class Activity(StrEnum):
    """What becomes of the GPUs' time."""

    QUEUED = "Queued"
    STARTING = "Starting"
    TRAINING = "Training"
    RECOVERING = "Recovering"
    NONE = "None"


# Decimal numbers as text: a binary fraction would not be the amount that was charged, and Kubernetes' own API has none.
# https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md#primitive-types
Money = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]{1,6})?$", max_length=32)]


class Cost(StatusModel):
    """What the job has cost: the GPU-seconds of the training stage at their price, and its new claims."""

    currency: str = Field(max_length=3, description="Currency of all amounts, as ISO 4217 names it.")
    total: Money = Field(default="0", description="Sum of the four that follow.")
    starting: Money = Field(default="0", description="For GPUs whose pods met and read the model.")
    productive: Money = Field(default="0", description="For steps that count.")
    lost: Money = Field(default="0", description="For steps that had to be done again, and from failures to new gangs.")
    storage: Money = Field(
        default="0", description="For the claims that the operator made for the job, from when it was accepted."
    )
    gpu_hour_price: Money | None = Field(
        default=None, description="Price of a GPU-hour on the nodes of the newest attempt that ran, on average."
    )
    priced_attempt: int = Field(default=0, ge=0, description="The attempt that this price was settled for.")
    storage_hour_price: Money | None = Field(default=None, description="Price of an hour of those claims.")
    storage_since: str = Field(
        json_schema_extra={"format": "date-time"}, description="Until when storage has been added up."
    )


class Accounting(StatusModel):
    """GPU-seconds of the training stage by what became of them; process-seconds where it trains on processors."""

    queued_gpu_seconds: int = Field(
        default=0, ge=0, description="While no gang ran: no node was free, the image was pulled, a queue held it back."
    )
    starting_gpu_seconds: int = Field(
        default=0, ge=0, description="While all pods ran and no step was begun: they met, and read the model."
    )
    productive_gpu_seconds: int = Field(
        default=0, ge=0, description="Steps that count: each checkpoint adds those up to it, the end adds the last."
    )
    lost_gpu_seconds: int = Field(
        default=0, ge=0, description="Steps that had to be done again, and the time from a failure to the next gang."
    )
    activity: Activity = Field(
        description="What becomes of the GPUs' time now: `Queued`, `Starting`, `Training`, `Recovering`, or `None` of "
        "it while they are free."
    )
    since: str = Field(
        json_schema_extra={"format": "date-time"},
        description="Until when the time has been added up; the rest is open.",
    )
    cost: Cost | None = Field(default=None, description="The same in money, where the administrator named prices.")


class Result(TrainedReport):
    """What came out."""

    evaluation: EvaluationReport | None = Field(
        default=None, description="Base and tuned model on the held-out rows; the whole is in the file of reportPath."
    )
    export: ExportReport | None = Field(default=None, description="What was made of the adapter.")


class FineTuneJobStatus(StatusModel):
    """Where the job stands and what came out of it."""

    model: str | None = Field(
        default=None,
        max_length=1024,
        description="The base model as the spec names it: its repository, or its path on the shared filesystem.",
    )
    phase: Phase | None = Field(default=None, description="Where the job stands, in one word.")
    reason: str | None = Field(default=None, max_length=256, description="Why it stands there, in a word.")
    observed_generation: int | None = Field(default=None, description="Generation of the spec that was last looked at.")
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Accepted, Prepared, Running, Evaluated, StoragePressure, Suspended, Complete, Failed.",
    )
    start_time: str | None = Field(
        default=None,
        json_schema_extra={"format": "date-time"},
        description="When the job was accepted, or last resumed. A suspended job has none.",
    )
    completion_time: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When it succeeded or failed."
    )
    plan: PreparedReport | None = Field(default=None, description="What prepare found and resolved.")
    progress: Progress | None = Field(default=None, description="How far the training is.")
    prepare_failures: tuple[Failure, ...] = Field(
        default=(), max_length=MAX_ATTEMPTS, description="The times that preparing broke off and was tried again."
    )
    attempts: tuple[Attempt, ...] = Field(
        default=(), max_length=MAX_ATTEMPTS, description="The gangs, oldest first; the newest hundred."
    )
    evaluate_failures: tuple[Failure, ...] = Field(
        default=(), max_length=MAX_ATTEMPTS, description="The times that evaluating broke off and was tried again."
    )
    restarts: int = Field(
        default=0,
        ge=0,
        description="How often preparing, training or evaluating started anew because it had failed; resuming does not "
        "count.",
    )
    checkpoint: Checkpoint | None = Field(default=None, description="The newest complete checkpoint.")
    damaged_checkpoints: tuple[str, ...] = Field(
        default=(),
        max_length=MAX_DAMAGED_CHECKPOINTS,
        description="Checkpoints that could not be gone on from: which, what is wrong, and what was used instead.",
    )
    accounting: Accounting | None = Field(default=None, description="What became of the GPUs' time.")
    result: Result | None = Field(default=None, description="What came out.")

    @property
    def has_trained(self) -> bool:
        """Whether an attempt has trained to the end."""
        return bool(self.attempts) and self.attempts[-1].reason == Reason.SUCCEEDED
