"""What the user writes: the spec of a FineTuneJob.

The groups that the trainer reads too come from `finetune_trainer.contract.spec`; here stands what only Kubernetes
needs: storage, the pods' shape, the Secret.
"""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from finetune_trainer.contract.environment import SECRET_NAMES
from finetune_trainer.contract.spec import SpecModel, TrainerCompute, TrainerSpec

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/, positive and without a sign
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"

Quantity = Annotated[str, Field(pattern=QUANTITY_PATTERN, max_length=32, examples=["2Ti"])]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=253)]


class EnvironmentVariable(SpecModel):
    """A plain environment variable of every container of the job. Tokens belong into the Secret."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=253, description="Name of the variable.")
    value: str = Field(default="", max_length=32768, description="Its value.")


class Toleration(SpecModel):
    """A Kubernetes toleration; GPU nodes are often tainted."""

    key: str | None = Field(default=None, max_length=317, description="Taint key; empty with operator Exists is all.")
    operator: str | None = Field(default=None, pattern="^(Exists|Equal)$", description="`Exists` or `Equal`.")
    value: str | None = Field(default=None, max_length=63, description="Taint value.")
    effect: str | None = Field(
        default=None,
        pattern="^(NoSchedule|PreferNoSchedule|NoExecute)$",
        description="`NoSchedule`, `PreferNoSchedule` or `NoExecute`; empty is all.",
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, description="How long a NoExecute taint is tolerated, in seconds."
    )


class Resources(SpecModel):
    """Requests and limits of each training pod, besides the GPUs that follow from gpusPerNode."""

    requests: dict[str, Quantity] = Field(
        default_factory=dict, max_length=16, description='For example `{cpu: "16", memory: 200Gi}`.'
    )
    limits: dict[str, Quantity] = Field(default_factory=dict, max_length=16, description="As requests.")


class ImagePullPolicy(StrEnum):
    """When the kubelet pulls the trainer image."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class Compute(TrainerCompute):
    """How many processes train, on what, and how Kubernetes places their pods."""

    image: str | None = Field(
        default=None, min_length=1, max_length=1024, description="Trainer image; the chart's when not set."
    )
    image_pull_policy: ImagePullPolicy | None = Field(
        default=None, description="When the image is pulled; the chart's policy when not set."
    )
    image_pull_secrets: tuple[ObjectName, ...] = Field(
        default=(), max_length=16, description="Names of Secrets with registry credentials."
    )
    resources: Resources = Field(default=Resources(), description="Requests and limits of each training pod.")
    node_selector: dict[str, str] = Field(
        default_factory=dict, max_length=64, description="Labels that a node must have."
    )
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=64, description="Taints that are tolerated.")
    env: tuple[EnvironmentVariable, ...] = Field(
        default=(), max_length=128, description="Environment of every container of the job, for example NCCL settings."
    )

    @model_validator(mode="after")
    def _tokens_are_in_the_secret(self) -> Self:
        for variable in self.env:
            if variable.name in SECRET_NAMES:
                raise ValueError(f"env: {variable.name} belongs into the Secret that secretName names")
        return self


class SharedStorage(SpecModel):
    """The shared filesystem: models, data, checkpoints and adapters. Every pod of the job mounts it."""

    claim_name: ObjectName | None = Field(default=None, description="An existing PersistentVolumeClaim.")
    size: Quantity | None = Field(default=None, description="Size of a new claim.")
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


class FineTuneJobSpec(TrainerSpec):
    """What is to be fine-tuned, on what, and where the result is kept."""

    compute: Compute = Field(default=Compute(), description="How many processes train, on what, placed how.")
    storage: Storage = Field(description="Where files are kept.")
    secret_name: ObjectName | None = Field(
        default=None,
        description="Secret of the job's namespace with the keys HF_TOKEN and WANDB_API_KEY, either of which may be "
        "missing. Its values reach the containers as environment variables and nothing else.",
    )

    def trainer_spec(self) -> TrainerSpec:
        """Return the part of the spec that the trainer reads."""
        return TrainerSpec(**{name: self._trainer_field(name) for name in TrainerSpec.model_fields})

    def _trainer_field(self, name: str) -> Any:
        if name == "compute":
            return TrainerCompute(**{field: getattr(self.compute, field) for field in TrainerCompute.model_fields})
        return getattr(self, name)
