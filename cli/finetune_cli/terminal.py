"""Where words go: results to standard output, what is said about them to standard error; colours on terminals alone.

rich itself keeps to https://no-color.org and to what TERM can do.
"""

import json
from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console, RenderableType
from rich.text import Text

from finetune_cli.options import DocumentFormat, OutputFormat


def output_console() -> Console:
    """Return the console of standard output; where that is no terminal, nothing is wrapped, cut or coloured."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def show(*parts: RenderableType) -> None:
    """Print results."""
    console = output_console()
    for part in parts:
        console.print(part)


def note(message: str) -> None:
    """Say something about the result that is no part of it."""
    Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True).print(Text(message, style="dim"))


def say_error(message: str) -> None:
    """Say why a command cannot go on."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), message))


def print_objects(bodies: Sequence[dict[str, Any]], output: OutputFormat, *, one: bool) -> None:
    """Print objects as kubectl does: one as itself, several as a List."""
    if output is OutputFormat.NAME:
        for body in bodies:
            print(f"finetunejob.finetune.dev/{body['metadata']['name']}")
        return
    whole = bodies[0] if one else {"apiVersion": "v1", "kind": "List", "items": list(bodies)}
    print_document(whole, DocumentFormat(output.value))


def print_document(document: Any, output: DocumentFormat) -> None:
    """Print data as JSON or YAML."""
    if output is DocumentFormat.JSON:
        print(json.dumps(document, indent=4))
    else:
        print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), end="")
