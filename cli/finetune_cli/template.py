"""The YAML of a first job, with a comment at each field that one may want to change. Pure."""

from dataclasses import dataclass

from finetune_operator import names
from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.spec import Lora, Training

_ON_FILESYSTEM = "path:"


@dataclass(frozen=True)
class Answers:
    """What a person wants."""

    name: str
    model: str
    dataset: str
    subset: str | None
    format: DatasetFormat
    nodes: int
    gpus_per_node: int
    storage_class: str | None
    size: str
    secret_name: str


def job_text(answers: Answers) -> str:
    """Return the manifest; defaults that one often changes stand there as comments."""
    return "\n".join(
        [
            "# Check it:   kubectl finetune plan -f FILE",
            "# Start it:   kubectl finetune submit -f FILE --env-file .env --watch",
            "# Every field: kubectl explain finetunejob.spec",
            f"apiVersion: {names.API_VERSION}",
            f"kind: {names.KIND}",
            "metadata:",
            f"  name: {answers.name}",
            "spec:",
            "  model:",
            f"    huggingFace: {{repository: {answers.model}}}",
            "  datasets:",
            *_dataset(answers),
            *_lora(),
            *_training(),
            *_compute(answers),
            *_storage(answers),
            "  evaluation:                  # base and tuned model on rows that training never sees",
            "    holdout: {share: 0.02}",
            "    # gate: {improvesBase: true}   # fail the job when the tuned model is no better",
            f"  secretName: {answers.secret_name}   # HF_TOKEN, WANDB_API_KEY; submit --env-file makes it",
            "",
        ]
    )


def _dataset(answers: Answers) -> list[str]:
    if answers.dataset.startswith(_ON_FILESYSTEM):
        source = f"  - path: {answers.dataset.removeprefix(_ON_FILESYSTEM)}   # on the shared filesystem"
    else:
        subset = f", subset: {answers.subset}" if answers.subset else ""
        source = f"  - huggingFace: {{repository: {answers.dataset}{subset}}}"
    return [
        source,
        f"    format: {answers.format.value}             # {', '.join(DatasetFormat)}",
        "    # maxSamples: 1500           # only the first rows",
    ]


def _lora() -> list[str]:
    lora = Lora()
    return [f"  # lora: {{rank: {lora.rank}, alpha: {lora.alpha}, dropout: {lora.dropout}}}   # the defaults"]


def _training() -> list[str]:
    training = Training()
    return [
        "  training:",
        f"    epochs: {training.epochs}",
        f"    maxStepsPerEpoch: {training.max_steps_per_epoch}",
        f"    batchSize: {training.batch_size}                 # sequences a GPU computes at once",
        f"    gradientAccumulation: {training.gradient_accumulation}     # batches before each step",
        f"    maxSequenceLength: {training.max_sequence_length}",
        f"    # optimizer: {{learningRate: {training.optimizer.learning_rate}}}",
    ]


def _compute(answers: Answers) -> list[str]:
    lines = ["  compute:", f"    nodes: {answers.nodes}"]
    if answers.gpus_per_node == 0:
        return [*lines, "    device: cpu                  # no GPU is asked for", "    processesPerNode: 1"]
    return [
        *lines,
        f"    gpusPerNode: {answers.gpus_per_node}",
        "    # resources: {requests: {cpu: 16, memory: 200Gi}}",
        "    # tolerations: [{key: nvidia.com/gpu, operator: Exists}]",
    ]


def _storage(answers: Answers) -> list[str]:
    storage_class = f", storageClassName: {answers.storage_class}" if answers.storage_class else ""
    many = " (ReadWriteMany)" if answers.nodes > 1 else ""
    return [
        "  storage:",
        f"    shared: {{size: {answers.size}{storage_class}}}   # models, data, checkpoints, adapter{many}",
        "    # shared: {claimName: my-filesystem}   # or one that is there",
    ]
