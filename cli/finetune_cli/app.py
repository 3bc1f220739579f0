"""The commands of `kubectl finetune`, in the order in which a person needs them."""

from collections.abc import Callable
from typing import Annotated

import typer

from finetune_cli.commands.compare import compare
from finetune_cli.commands.cost import cost
from finetune_cli.commands.doctor import doctor
from finetune_cli.commands.download import download
from finetune_cli.commands.exec import exec_
from finetune_cli.commands.init import init
from finetune_cli.commands.local import local
from finetune_cli.commands.logs import logs
from finetune_cli.commands.plan import plan
from finetune_cli.commands.prune import prune
from finetune_cli.commands.retry import retry
from finetune_cli.commands.status import status
from finetune_cli.commands.submit import submit
from finetune_cli.commands.suspend import resume, suspend
from finetune_cli.commands.watch import watch
from finetune_operator import __version__

app = typer.Typer(
    name="kubectl finetune",
    help="Fine-tune LLMs on Kubernetes: from the first YAML to the adapter on your own disk.\n\n"
    "It works on FineTuneJobs with the rights of your kubeconfig, as kubectl does. "
    "Exit codes are listed in docs/reference/command-line.md.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

BEFORE, DURING, AFTER, PLATFORM = "Before a run", "While it runs", "After it", "Beside the cluster"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kubectl-finetune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _add(panel: str, *commands: Callable[..., None]) -> None:
    for command in commands:
        app.command(command.__name__.rstrip("_"), rich_help_panel=panel)(command)


_add(BEFORE, init, plan, submit)
_add(DURING, watch, status, logs, doctor, exec_, suspend, resume)
_add(AFTER, retry, compare, cost, download, prune)
_add(PLATFORM, local)
