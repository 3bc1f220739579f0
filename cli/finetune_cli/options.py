"""The options that several commands share, called as kubectl calls them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class OutputFormat(StrEnum):
    """How a result is printed: for people when not set."""

    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class DocumentFormat(StrEnum):
    """The same for what has no name."""

    JSON = "json"
    YAML = "yaml"


_CLUSTER = "Cluster"
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Namespace; the context's when not set.", rich_help_panel=_CLUSTER),
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.", rich_help_panel=_CLUSTER)]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig",
        help="Kubeconfig file; KUBECONFIG or ~/.kube/config when not set.",
        rich_help_panel=_CLUSTER,
        dir_okay=False,
    ),
]
JobName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the FineTuneJob.", show_default=False)]
File = Annotated[
    Path, typer.Option("--filename", "-f", help="A YAML file with one FineTuneJob; - reads it from standard input.")
]
Output = Annotated[OutputFormat | None, typer.Option("--output", "-o", help="Print the objects instead of a table.")]
Document = Annotated[DocumentFormat | None, typer.Option("--output", "-o", help="Print all of it as a document.")]
Timeout = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up after so many seconds.")
]
