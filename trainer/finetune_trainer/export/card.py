"""The model card: what a person has to know before using an adapter, written from the job.

The front matter is that of the Hub (https://huggingface.co/docs/hub/model-cards), so that an uploaded adapter is found
under its base model.
"""

from dataclasses import dataclass
from importlib.metadata import version

import yaml
from huggingface_hub import ModelCardData

from finetune_trainer import __version__
from finetune_trainer.contract.evaluation import EvaluationReport, Measure, Metric
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.termination import PreparedReport, TrainedReport

LIBRARIES = ("torch", "transformers", "safetensors")


@dataclass(frozen=True)
class CardContent:
    """Everything that a card tells."""

    job: TrainerJob
    prepared: PreparedReport
    trained: TrainedReport
    evaluated: EvaluationReport | None
    commands: tuple[str, ...]  # that serve it


def write_card(content: CardContent) -> str:
    """Return the text of README.md."""
    sections = [
        f"# {content.job.name}",
        _introduction(content),
        "## Use\n\n" + _use(content),
        "## Evaluation\n\n" + _evaluation(content.evaluated),
        "## Data\n\n" + _data(content.prepared),
        "## Training\n\n" + _training(content),
        "## Recipe\n\n" + _recipe(content.job),
    ]
    return f"---\n{_front_matter(content)}\n---\n" + "\n\n".join(sections) + "\n"


def _front_matter(content: CardContent) -> str:
    is_on_hub = content.job.spec.model.hugging_face is not None
    repositories = [dataset.hugging_face.repository for dataset in content.job.spec.datasets if dataset.hugging_face]
    data = ModelCardData(
        base_model=content.prepared.model.partition("@")[0] if is_on_hub else None,
        datasets=sorted(set(repositories)) or None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "function-calling"],
    )
    text: str = data.to_yaml()
    return text


def _introduction(content: CardContent) -> str:
    prepared, lora = content.prepared, content.job.spec.lora
    return (
        f"A LoRA adapter of rank {lora.rank} for **{prepared.model}** ({prepared.trainable_parameters:,} trained of "
        f"{prepared.parameters:,} parameters), fine-tuned by finetune-operator {__version__} on "
        f"{sum(dataset.rows_kept for dataset in prepared.datasets):,} conversations."
    )


def _use(content: CardContent) -> str:
    base, _, revision = content.prepared.model.partition("@")
    lines = ["With PEFT:", "", "```python", "from peft import PeftModel"]
    lines += ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    of_revision = f', revision="{revision}"' if revision else ""
    lines += [f'base = AutoModelForCausalLM.from_pretrained("{base}"{of_revision})']
    lines += ['model = PeftModel.from_pretrained(base, "path/of/this/directory")']
    lines += [f'tokenizer = AutoTokenizer.from_pretrained("{base}"{of_revision})', "```"]
    for command in content.commands:
        lines += ["", "With vLLM:", "", "```bash", command, "```"]
    return "\n".join(lines)


def _evaluation(report: EvaluationReport | None) -> str:
    if report is None:
        return "Not evaluated: no rows were held out."
    lines = [
        f"On {report.rows} held-out rows, of which {report.turns} turns of the assistant were generated greedily "
        f"({report.calling_turns} of them should call functions). In brackets: 95 % bootstrap interval over rows.",
        "",
        "| metric | base | tuned |",
        "|---|---|---|",
    ]
    lines += [
        f"| {metric} | {_told(report.base.measure(metric))} | {_told(report.tuned.measure(metric))} |"
        for metric in Metric
    ]
    if report.gate:
        verdict = "met" if report.gate_met else "**not met**"
        marks = {True: "met", False: "not met"}
        lines += ["", f"The job's gate was {verdict}:", ""]
        lines += [f"- {result.condition}: {marks[result.met]}, {result.found}" for result in report.gate]
    lines += [""] * bool(report.notes) + [f"- {note}" for note in report.notes]
    return "\n".join(lines)


def _told(measure: Measure | None) -> str:
    return "-" if measure is None else f"{measure.value:.3f} ({measure.low:.3f} to {measure.high:.3f})"


def _data(prepared: PreparedReport) -> str:
    lines = ["| data set | revision | rows read | rows trained on |", "|---|---|---|---|"]
    lines += [
        f"| {dataset.name} | {dataset.revision or '-'} | {dataset.rows_read:,} | {dataset.rows_kept:,} |"
        for dataset in prepared.datasets
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"{prepared.tokens:,} tokens an epoch in {prepared.sequences:,} sequences, {prepared.trained_tokens:,} of "
            f"them the assistant's, which alone carry a loss. Digest of the prepared data: "
            f"`{prepared.data_path.rpartition('/')[2]}`.",
        ]
    )


def _training(content: CardContent) -> str:
    prepared, trained = content.prepared, content.trained
    facts = {
        "steps": f"{trained.steps:,} of {prepared.global_batch} sequences",
        "processes": f"{prepared.world_size}, {prepared.precision}, sharding {prepared.sharding}",
        "tokens": f"{trained.tokens:,} at {trained.tokens_per_second:,.0f} a second",
        "loss": f"{trained.first_loss:.4f} at the first step, {trained.final_loss:.4f} at the end",
        "adapter": f"`{trained.adapter_digest}`",
        "versions": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def _recipe(job: TrainerJob) -> str:
    """Return the part of the manifest that decides the result, to be applied again."""
    groups = {"model", "datasets", "lora", "training", "evaluation"}
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_none=True, include=groups)
    return f"```yaml\n{yaml.safe_dump({'spec': spec}, sort_keys=False, allow_unicode=True)}```"
