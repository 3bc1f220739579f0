"""`init`: writes the first YAML, with comments, from a few questions or from options."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from finetune_cli.errors import CommandError, ExitCode
from finetune_cli.job_file import parse_job_text
from finetune_cli.template import Answers, job_text
from finetune_cli.terminal import note
from finetune_trainer.contract.dataset import DatasetFormat

_DEFAULTS = Answers(
    name="function-calling",
    model="meta-llama/Llama-3.1-8B-Instruct",
    dataset="NousResearch/hermes-function-calling-v1",
    subset="func_calling",
    format=DatasetFormat.HERMES,
    nodes=1,
    gpus_per_node=1,
    storage_class=None,
    size="500Gi",
    secret_name="fine-tuning-tokens",
)


def init(
    filename: Annotated[Path, typer.Argument(metavar="[FILE]", help="File to write; - is standard output.")] = Path(
        "job.yaml"
    ),
    name: Annotated[str | None, typer.Option(help="Name of the job.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: a repository on the Hub.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data: a repository on the Hub, or path:FILE on the shared filesystem.")
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Subset of the data set, where it has several.")] = None,
    format: Annotated[DatasetFormat | None, typer.Option(help="How a row spells a conversation.")] = None,  # noqa: A002
    nodes: Annotated[int | None, typer.Option(min=1, max=1024, help="Nodes to train on.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, max=64, help="GPUs of each node; 0 trains on processors.")] = None,
    storage_class: Annotated[
        str | None, typer.Option(help="Storage class of the shared filesystem (ReadWriteMany for several nodes).")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Size of the shared filesystem.")] = None,
    secret: Annotated[str | None, typer.Option(help="Secret with HF_TOKEN and WANDB_API_KEY.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; options and defaults decide.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write the YAML of a job, with a comment at each field that one may want to change.

    It asks for what no option says, and nothing with --yes or where there is no terminal.

    Examples:

      kubectl finetune init

      kubectl finetune init job.yaml --yes --model Qwen/Qwen2.5-7B-Instruct --nodes 2 --gpus 8
    """
    to_output = filename == Path("-")
    if filename.exists() and not force and not to_output:
        raise CommandError(f"{filename} is there already: choose another name, or --force", ExitCode.USAGE)
    given: dict[str, object] = {
        "name": name,
        "model": model,
        "dataset": dataset,
        "subset": subset,
        "format": format,
        "nodes": nodes,
        "gpus_per_node": gpus,
        "storage_class": storage_class,
        "size": size,
        "secret_name": secret,
    }
    asks = not yes and sys.stdin.isatty()
    text = job_text(_ask(given) if asks else filled(given))
    parse_job_text(text, "what you chose")
    if to_output:
        print(text, end="")
        return
    filename.write_text(text, encoding="utf-8")
    note(f"Wrote {filename}. Next: kubectl finetune plan -f {filename}")


def filled(given: dict[str, object]) -> Answers:
    """Return what was given, and defaults for the rest."""
    chosen = {key: value for key, value in given.items() if value is not None}
    if "dataset" in chosen:
        chosen.setdefault("subset", None)  # that of the default data set means nothing to another
    return Answers(**(vars(_DEFAULTS) | chosen))


def _ask(given: dict[str, object]) -> Answers:
    answers = dict(given)

    def ask(key: str, question: str, default: object, kind: type = str) -> None:
        if answers[key] is None:
            answers[key] = typer.prompt(question, default=default, type=kind, err=True)

    ask("name", "Name of the job", _DEFAULTS.name)
    ask("model", "Base model, a repository on the Hub", _DEFAULTS.model)
    ask("dataset", "Data, a repository on the Hub or path:FILE on the shared filesystem", _DEFAULTS.dataset)
    if answers["dataset"] == _DEFAULTS.dataset:
        answers["subset"] = answers["subset"] or _DEFAULTS.subset
    formats = ", ".join(DatasetFormat)
    ask("format", f"Format of its rows ({formats})", _DEFAULTS.format.value)
    answers["format"] = _format(str(answers["format"]))
    ask("nodes", "Nodes", _DEFAULTS.nodes, int)
    ask("gpus_per_node", "GPUs of each node (0 trains on processors)", _DEFAULTS.gpus_per_node, int)
    if answers["storage_class"] is None:
        words = "Storage class of the shared filesystem (empty is the cluster's default)"
        answers["storage_class"] = typer.prompt(words, default="", show_default=False, err=True) or None
    ask("size", "Size of the shared filesystem", _DEFAULTS.size)
    ask("secret_name", "Secret with HF_TOKEN and WANDB_API_KEY", _DEFAULTS.secret_name)
    return Answers(**answers)  # type: ignore[arg-type]


def _format(text: str) -> DatasetFormat:
    try:
        return DatasetFormat(text)
    except ValueError as error:
        raise CommandError(f"{text} is no format; known are {', '.join(DatasetFormat)}", ExitCode.USAGE) from error
