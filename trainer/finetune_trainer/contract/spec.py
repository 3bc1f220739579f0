"""The part of a FineTuneJob's spec that the trainer understands.

A FineTuneJob is read by two programs. These models are the half that both of them read, so they live on the
trainer's side of the contract; `finetune_operator.api` extends them with what only Kubernetes needs. The
descriptions become the documentation of the CRD, the defaults are the recipe of the proof of concept.
"""

from enum import StrEnum
from typing import Self

from pydantic import Field, field_validator, model_validator

from finetune_trainer.contract.dataset import Dataset
from finetune_trainer.contract.group import RepositoryName, Revision, SharedPath, SpecModel
from finetune_trainer.contract.outcome import Evaluation, Export


class HuggingFaceModel(SpecModel):
    """A model on the Hugging Face Hub."""

    repository: RepositoryName
    revision: Revision = "main"


class ModelSource(SpecModel):
    """Where the base model comes from: exactly one source."""

    hugging_face: HuggingFaceModel | None = Field(default=None, description="A model on the Hugging Face Hub.")
    path: SharedPath | None = Field(
        default=None,
        description="A directory on the shared filesystem in the Hugging Face layout: config.json, tokenizer and "
        "safetensors files.",
        examples=["models/my-model"],
    )

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        if (self.hugging_face is None) == (self.path is None):
            raise ValueError("set exactly one of huggingFace and path")
        return self


class LoraTarget(StrEnum):
    """A linear layer of a transformer block, by the name that Hugging Face models give it."""

    Q_PROJ = "q_proj"
    K_PROJ = "k_proj"
    V_PROJ = "v_proj"
    O_PROJ = "o_proj"
    GATE_PROJ = "gate_proj"
    UP_PROJ = "up_proj"
    DOWN_PROJ = "down_proj"


class Lora(SpecModel):
    """The low-rank adapter (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    rank: int = Field(default=64, ge=1, le=1024, description="Rank of the adapter matrices.")
    alpha: int = Field(
        default=128, ge=1, le=65536, description="Scale of the adapter: its output is multiplied by alpha / rank."
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Dropout on the adapter's input while training.")
    targets: tuple[LoraTarget, ...] = Field(
        default=tuple(LoraTarget),
        min_length=1,
        max_length=len(LoraTarget),
        description="Linear layers of each block that get an adapter.",
    )

    @field_validator("targets")
    @classmethod
    def _targets_are_unique(cls, targets: tuple[LoraTarget, ...]) -> tuple[LoraTarget, ...]:
        if len(set(targets)) != len(targets):
            raise ValueError("each layer may be named once")
        return targets


class Precision(StrEnum):
    """The number format of weights and activations; fp8 and NF4 are of frozen weights, activations are bf16 then."""

    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"
    FP8 = "fp8"
    FP8_FAST = "fp8-fast"
    NF4 = "nf4"


class Kernels(StrEnum):
    """How a training step is computed."""

    AUTO = "auto"
    FUSED = "fused"
    PLAIN = "plain"


class Overlong(StrEnum):
    """What happens to a conversation with more tokens than `maxSequenceLength`."""

    TRUNCATE = "truncate"
    DROP = "drop"


class Optimizer(SpecModel):
    """AdamW (Loshchilov and Hutter 2017, https://arxiv.org/abs/1711.05101)."""

    learning_rate: float = Field(
        default=2e-4,
        gt=0,
        le=1,
        description="Peak learning rate. Models below a billion parameters learn faster with 0.001 to 0.002.",
    )
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="Decoupled weight decay.")
    max_gradient_norm: float = Field(
        default=1.0, gt=0, le=1e6, description="The gradient of a global batch is scaled down to this norm."
    )


class Schedule(SpecModel):
    """Linear warm-up, then a cosine to zero at the last step."""

    warmup_steps: int = Field(
        default=100,
        ge=0,
        le=1_000_000,
        description="Steps until the peak learning rate is reached. A run shorter than twice this many steps warms "
        "up for half of it.",
    )


class Profile(SpecModel):
    """A trace of some steps, for a person who asks where their time goes."""

    first_step: int = Field(
        default=10, ge=1, le=10_000_000, description="The first step that is traced, counted from 1."
    )
    steps: int = Field(default=2, ge=1, le=20, description="Steps that are traced, one after another.")


class Training(SpecModel):
    """The training loop."""

    epochs: int = Field(default=3, ge=1, le=1000, description="Passes over the data.")
    max_steps_per_epoch: int = Field(
        default=1000, ge=1, le=10_000_000, description="An epoch ends after this many steps at the latest."
    )
    batch_size: int = Field(default=2, ge=1, le=1024, description="Sequences a process computes at once.")
    gradient_accumulation: int = Field(
        default=16,
        ge=1,
        le=65536,
        description="Batches a process computes before a step. The global batch is batchSize x gradientAccumulation "
        "x processes.",
    )
    max_sequence_length: int = Field(default=4096, ge=16, le=1_048_576, description="Tokens of a sequence, at most.")
    overlong: Overlong = Field(
        default=Overlong.TRUNCATE,
        description="What happens to a conversation longer than maxSequenceLength: `truncate` cuts its end off, "
        "`drop` leaves it out. Both are counted.",
    )
    packing: bool = Field(
        default=True,
        description="Put several conversations into one sequence. They do not see each other.",
    )
    precision: Precision = Field(
        default=Precision.AUTO,
        description="Number format. `auto` is bf16 on a GPU and fp32 on a CPU. `fp8`: gradients go through the frozen "
        "weights in 8 bits, faster than bf16; `fp8-fast`: in all but the first and last layers the forward pass does, "
        "too, which is faster still and costs about half a percent of the loss; both for GPUs of compute capability "
        "8.9 and above. `nf4`: frozen weights in 4 bits (QLoRA), a third of the memory of bf16, a little slower.",
    )
    activation_checkpointing: bool | None = Field(
        default=None,
        description="Recompute activations in the backward pass: less memory, about a third more time. When not set, "
        "it is done where the training would not fit the GPU's memory otherwise.",
    )
    kernels: Kernels = Field(
        default=Kernels.AUTO,
        description="How a step is computed. `fused`: written out for speed, in bf16, fp8 or nf4 on a GPU, with any "
        "sharding. `plain`: by PyTorch's modules and FSDP2, in bf16 or fp32. `auto`: fused where it can be.",
    )
    embedding_on_host: bool = Field(
        default=False,
        description="Keep the table of token embeddings in the host's memory: 1 GB of an 8B model that its GPU need "
        "not hold, for about 2 % more time. With fused kernels, and where the head is a table of its own.",
    )
    optimizer: Optimizer = Field(default=Optimizer(), description="AdamW and gradient clipping.")
    schedule: Schedule = Field(default=Schedule(), description="Linear warm-up, then a cosine to zero.")
    seed: int = Field(
        default=0, ge=0, le=2**32 - 1, description="Seed of the adapter's weights, the order of the data and dropout."
    )
    profile: Profile | None = Field(
        default=None,
        description="Trace some steps of the process of rank 0, its kernels and its collective operations, into "
        "profile/ beside training.log, as a Chrome trace. The training stands still while the trace is written.",
    )
    log_every_steps: int = Field(
        default=10, ge=1, le=1_000_000, description="A line in training.log each so many steps."
    )


class Checkpoint(SpecModel):
    """What is kept on the way."""

    every_steps: int = Field(default=500, ge=1, le=10_000_000, description="A checkpoint each so many steps.")
    keep: int = Field(default=2, ge=1, le=1000, description="Checkpoints to keep; older ones are removed.")


class WandbMode(StrEnum):
    """Whether a run is sent to the Weights & Biases server or written to disk for a later `wandb sync`."""

    ONLINE = "online"
    OFFLINE = "offline"


class Wandb(SpecModel):
    """A run on Weights & Biases. The key is WANDB_API_KEY of the job's Secret."""

    project: str = Field(min_length=1, max_length=128, description="Project that the run belongs to.")
    entity: str | None = Field(default=None, min_length=1, max_length=128, description="Team or user that owns it.")
    mode: WandbMode = Field(
        default=WandbMode.ONLINE, description="`offline` writes the run beside the job's logs and needs no key."
    )


class Tracking(SpecModel):
    """Where a run is reported besides Prometheus and the log files."""

    wandb: Wandb | None = Field(default=None, description="Report the run to Weights & Biases.")


class Device(StrEnum):
    """What the processes compute on."""

    GPU = "gpu"
    CPU = "cpu"


class Sharding(StrEnum):
    """How the frozen base model is spread over the processes (FSDP2)."""

    AUTO = "auto"
    REPLICATE = "replicate"
    HYBRID = "hybrid"
    FULL = "full"


class TrainerCompute(SpecModel):
    """How many processes train, and on what."""

    nodes: int = Field(default=1, ge=1, le=1024, description="Nodes to train on, one pod each.")
    gpus_per_node: int | None = Field(
        default=None, ge=1, le=64, description="GPUs of a node, one process each. 1 when not set. Only with device gpu."
    )
    processes_per_node: int | None = Field(
        default=None, ge=1, le=64, description="Processes of a node. 1 when not set. Only with device cpu."
    )
    device: Device = Field(
        default=Device.GPU,
        description="`cpu` trains without GPUs and asks the scheduler for none: small models, tests.",
    )
    sharding: Sharding = Field(
        default=Sharding.AUTO,
        description="`replicate`: the whole base model on every process. `full`: spread over all of them. `hybrid`: "
        "spread within a node, replicated across nodes. `auto` takes the first of replicate, hybrid, full that fits.",
    )

    @model_validator(mode="after")
    def _processes_match_the_device(self) -> Self:
        if self.device is Device.GPU and self.processes_per_node is not None:
            raise ValueError("processesPerNode is for device cpu; with device gpu set gpusPerNode")
        if self.device is Device.CPU and self.gpus_per_node is not None:
            raise ValueError("gpusPerNode is for device gpu; with device cpu set processesPerNode")
        return self

    @property
    def num_processes_per_node(self) -> int:
        """Processes of a node: one a GPU, or as many CPU processes as were asked for."""
        return (self.gpus_per_node if self.device is Device.GPU else self.processes_per_node) or 1

    @property
    def world_size(self) -> int:
        """Processes of all nodes."""
        return self.nodes * self.num_processes_per_node


class TrainerSpec(SpecModel):
    """Everything the trainer needs to know about a job."""

    model: ModelSource = Field(description="The base model.")
    datasets: tuple[Dataset, ...] = Field(
        min_length=1, max_length=32, description="Conversations to train on; their rows are mixed."
    )
    lora: Lora = Field(default=Lora(), description="The adapter.")
    training: Training = Field(default=Training(), description="The training loop.")
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="What is kept on the way.")
    compute: TrainerCompute = Field(default=TrainerCompute(), description="How many processes train, and on what.")
    evaluation: Evaluation = Field(
        default=Evaluation(), description="Base and tuned model are scored on rows that training never sees."
    )
    export: Export = Field(default=Export(), description="What is made of the adapter besides itself.")
    tracking: Tracking = Field(default=Tracking(), description="Where a run is reported besides Prometheus.")

    @property
    def global_batch(self) -> int:
        """Sequences of one optimizer step over all processes."""
        return self.training.batch_size * self.training.gradient_accumulation * self.compute.world_size
