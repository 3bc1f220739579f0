"""What the user writes: the spec of a FineTuneJob.

The groups that the trainer reads too come from `finetune_trainer.contract.spec`; here stands what only Kubernetes
needs: storage, the pods' shape, the Secret. Every check that these models make and that a schema cannot say is told
to the API server a second time, in `rules`.
"""

import re
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from finetune_operator.api.placement import LABEL_KEY_PATTERN, Affinity, LabelValue, Toleration
from finetune_operator.quantity import QUANTITY_PATTERN, quantity_value
from finetune_trainer.contract.environment import JOB_COMPLETION_INDEX, SECRET_NAMES
from finetune_trainer.contract.group import SpecModel
from finetune_trainer.contract.spec import TrainerCompute, TrainerSpec, WandbMode

# The operator's own variables, and those with which torchrun finds its gang.
RESERVED_VARIABLE_PATTERN = rf"^(FINETUNE_.*|PET_.*|{JOB_COMPLETION_INDEX})$"
# What may be shared out in any amount, and what only in whole pieces: of the latter Kubernetes wants a limit, and takes
# the request from it. https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/#extended-resources
REQUEST_PATTERN = r"^(cpu|memory|ephemeral-storage)$"
REQUEST_RULE = "requests are of cpu, memory and ephemeral-storage; everything else stands in limits alone"
LIMIT_PATTERN = (
    r"^(cpu|memory|ephemeral-storage|hugepages-[0-9A-Za-z.]+|"
    r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9][-A-Za-z0-9_.]*)$"
)
LIMIT_RULE = "limits are of cpu, memory, ephemeral-storage, hugepages-<size> or <vendor>/<name>"
# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#dns-subdomain-names
ObjectName = Annotated[
    str,
    Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", min_length=1, max_length=253),
]


def _as_text(amount: Any) -> Any:
    return str(amount) if isinstance(amount, int) and not isinstance(amount, bool) else amount


def _above_zero(amount: str) -> str:
    if quantity_value(amount) == 0:
        raise ValueError("must be more than zero")
    return amount


# A whole number may be written without quotes, as everywhere in Kubernetes. NB: the validator stands after the Field,
# or pydantic leaves the pattern out of the JSON schema.
Quantity = Annotated[
    str,
    Field(pattern=QUANTITY_PATTERN, max_length=32, json_schema_extra={"x-kubernetes-int-or-string": True}),
    BeforeValidator(_as_text),
]
Size = Annotated[Quantity, AfterValidator(_above_zero)]
BUDGET_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,2})?$"
Budget = Annotated[
    str,
    Field(pattern=BUDGET_PATTERN, max_length=32, json_schema_extra={"x-kubernetes-int-or-string": True}),
    BeforeValidator(_as_text),
    AfterValidator(_above_zero),
]


class EnvironmentVariable(SpecModel):
    """A plain environment variable of every container of the job. Tokens belong into the Secret."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=253, description="Name of the variable.")
    value: str = Field(default="", max_length=32768, description="Its value.")


def _checked_names(amounts: dict[str, str], pattern: str, rule: str) -> dict[str, str]:
    for name in amounts:
        if not re.fullmatch(pattern, name):
            raise ValueError(f"{name}: {rule}")
    return amounts


class Resources(SpecModel):
    """Requests and limits of each training pod, besides the GPUs that follow from gpusPerNode."""

    requests: dict[str, Quantity] = Field(
        default_factory=dict, max_length=16, description="For example `{cpu: 16, memory: 200Gi}`."
    )
    limits: dict[str, Quantity] = Field(default_factory=dict, max_length=16, description="As requests.")

    @field_validator("requests")
    @classmethod
    def _may_be_requested(cls, amounts: dict[str, str]) -> dict[str, str]:
        return _checked_names(amounts, REQUEST_PATTERN, REQUEST_RULE)

    @field_validator("limits")
    @classmethod
    def _may_be_limited(cls, amounts: dict[str, str]) -> dict[str, str]:
        return _checked_names(amounts, LIMIT_PATTERN, LIMIT_RULE)

    @model_validator(mode="after")
    def _requests_are_within_limits(self) -> Self:
        for name, request in self.requests.items():
            if name in self.limits and quantity_value(request) > quantity_value(self.limits[name]):
                raise ValueError("each request must be at most its limit")
        return self


class ImagePullPolicy(StrEnum):
    """When the kubelet pulls the trainer image."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class Backend(StrEnum):
    """What makes the training pods and watches over them."""

    JOB = "Job"
    PYTORCH_JOB = "PyTorchJob"


class Compute(TrainerCompute):
    """How many processes train, on what, and how Kubernetes places their pods."""

    backend: Backend = Field(
        default=Backend.JOB,
        description="What runs the training pods. `Job`: Indexed Jobs, which every cluster has. `PyTorchJob`: that of "
        "Kubeflow's training-operator, which has to be installed.",
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        pattern=r"^\S+$",
        description="Trainer image; the chart's when not set.",
    )
    image_pull_policy: ImagePullPolicy | None = Field(
        default=None, description="When the image is pulled; the chart's policy when not set."
    )
    image_pull_secrets: tuple[ObjectName, ...] = Field(
        default=(), max_length=16, description="Names of Secrets with registry credentials."
    )
    resources: Resources = Field(default=Resources(), description="Requests and limits of each training pod.")
    node_selector: dict[str, LabelValue] = Field(
        default_factory=dict, max_length=64, description="Labels that a node must have; preparing runs there too."
    )
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=64, description="Taints that are tolerated.")
    affinity: Affinity | None = Field(
        default=None, description="Where pods would rather be, or must be; preparing too. As in a pod's own spec."
    )
    priority_class_name: ObjectName | None = Field(
        default=None, description="PriorityClass of the pods; the cluster's default when not set."
    )
    rdma: bool = Field(
        default=False,
        description="Give every training pod the RDMA device that the chart names (`trainer.rdmaResourceName`) and the "
        "capability IPC_LOCK, which only namespaces with the Pod Security level `privileged` permit.",
    )
    env: tuple[EnvironmentVariable, ...] = Field(
        default=(),
        max_length=128,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        description="Environment of every container of the job, for example NCCL settings.",
    )

    @field_validator("node_selector")
    @classmethod
    def _keys_are_label_keys(cls, labels: dict[str, str]) -> dict[str, str]:
        for key in labels:
            if not re.fullmatch(LABEL_KEY_PATTERN, key):
                raise ValueError(f"{key}: is no label key")
        return labels

    @field_validator("env")
    @classmethod
    def _names_are_the_users_own(cls, variables: tuple[EnvironmentVariable, ...]) -> tuple[EnvironmentVariable, ...]:
        variable_names = [variable.name for variable in variables]
        for name in variable_names:
            if name in SECRET_NAMES:
                raise ValueError(f"{name} is a token: put it into the Secret that secretName names")
            if re.fullmatch(RESERVED_VARIABLE_PATTERN, name):
                raise ValueError(f"{name} is set by the operator: FINETUNE_*, PET_* and {JOB_COMPLETION_INDEX} are")
            if variable_names.count(name) > 1:
                raise ValueError(f"{name}: each variable may be named once")
        return variables


class SharedStorage(SpecModel):
    """The shared filesystem: models, data, checkpoints and adapters. Every pod of the job mounts it."""

    claim_name: ObjectName | None = Field(default=None, description="An existing PersistentVolumeClaim.")
    size: Size | None = Field(default=None, description="Size of a new claim, for example `2Ti`.")
    storage_class_name: ObjectName | None = Field(
        default=None, description="Storage class of a new claim; the cluster's default when not set."
    )

    @model_validator(mode="after")
    def _claimed_or_made(self) -> Self:
        if (self.claim_name is None) == (self.size is None):
            raise ValueError("set exactly one of claimName and size")
        if self.claim_name is not None and self.storage_class_name is not None:
            raise ValueError("storageClassName is for a new claim; with claimName leave it out")
        return self


class AccessMode(StrEnum):
    """Whether a claim can be mounted on one node or on many."""

    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_WRITE_MANY = "ReadWriteMany"


class NetworkStorage(SharedStorage):
    """The network disk: log files. Only the pod of rank 0 writes to it, so it may be ReadWriteOnce."""

    access_mode: AccessMode = Field(
        default=AccessMode.READ_WRITE_ONCE,
        description="Access mode of a new claim. An existing claim is asked for its own.",
    )


class Reclaim(StrEnum):
    """What becomes of claims that the operator made when the job is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


class Storage(SpecModel):
    """Where files are kept."""

    shared: SharedStorage = Field(description="The shared filesystem, ReadWriteMany where there is more than one node.")
    network: NetworkStorage | None = Field(
        default=None, description="A network disk for the log files; without one they lie on the shared filesystem."
    )
    reclaim: Reclaim = Field(
        default=Reclaim.RETAIN,
        description="What becomes of the claims that the operator made when the job is deleted. `Retain` keeps them: a "
        "trained adapter is not lost to a kubectl delete.",
    )


class RunPolicy(SpecModel):
    """How long the job may take, and what follows when its training breaks off. It may be changed at any time."""

    max_restarts: int = Field(
        default=6,
        ge=0,
        le=100,
        description="How many times training starts anew from its last checkpoint when a node, a pod or the network "
        "fails. What would fail the same way again, such as a loss that is no number, is not tried again.",
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=2**31 - 1,
        description="The job fails when it is not done so long after it was accepted, waiting included. Suspending it "
        "stops this clock, and resuming starts it from zero, as with a Kubernetes Job.",
    )
    stall_timeout_seconds: int = Field(
        default=1800,
        ge=0,
        le=2**31 - 1,
        description="Training that has done no step for so long is stopped and starts anew from its last checkpoint; "
        "it has to be longer than loading the model takes. 0 waits for ever.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        description="The job is deleted so long after it succeeded or failed; claims as storage.reclaim says. A job "
        "without this stays.",
    )
    termination_grace_period_seconds: int = Field(
        default=300,
        ge=1,
        le=86400,
        description="What a training pod that is told to stop gets to finish its step and to write a checkpoint. A "
        "change counts from the next attempt on.",
    )
    budget: Budget | None = Field(
        default=None,
        description="What the job may cost, in the currency of the operator's prices: `250`, or `'99.50'`. When "
        "status.accounting.cost says that it is spent, the job is suspended after a checkpoint and its GPUs are free; "
        "with a higher budget it goes on from there. What is written from then on until the last pod is gone is spent "
        "besides. A model that is trained is evaluated all the same.",
    )


class FineTuneJobSpec(TrainerSpec):
    """What is to be fine-tuned, on what, and where the result is kept."""

    compute: Compute = Field(default=Compute(), description="How many processes train, on what, placed how.")
    storage: Storage = Field(description="Where files are kept.")
    run_policy: RunPolicy = Field(
        default=RunPolicy(), description="How long the job may take, and what follows when its training breaks off."
    )
    suspend: bool = Field(
        default=False,
        description="true stops the job at its next step with a checkpoint and frees its GPUs; false lets it go on "
        "from there. Claims and what is on them stay. It may be changed at any time.",
    )
    secret_name: ObjectName | None = Field(
        default=None,
        description="Secret of the job's namespace with the keys HF_TOKEN and WANDB_API_KEY, either of which may be "
        "missing; a Secret that is not there counts as an empty one. Its values reach the containers as environment "
        "variables and nothing else.",
    )

    @model_validator(mode="after")
    def _tracking_has_its_key(self) -> Self:
        wandb = self.tracking.wandb
        if wandb is not None and wandb.mode is WandbMode.ONLINE and self.secret_name is None:
            raise ValueError("tracking.wandb needs secretName, a Secret with WANDB_API_KEY; or set its mode to offline")
        return self

    @model_validator(mode="after")
    def _upload_has_its_token(self) -> Self:
        if self.export.push_to is not None and self.secret_name is None:
            raise ValueError("export.pushTo needs secretName, a Secret with an HF_TOKEN that may write")
        return self

    def trainer_spec(self) -> TrainerSpec:
        """Return the part of the spec that the trainer reads."""
        return TrainerSpec(**{name: self._trainer_field(name) for name in TrainerSpec.model_fields})

    def _trainer_field(self, name: str) -> Any:
        if name == "compute":
            return TrainerCompute(**{field: getattr(self.compute, field) for field in TrainerCompute.model_fields})
        return getattr(self, name)
