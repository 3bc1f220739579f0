"""The reference page of `kubectl finetune`, made from the commands themselves."""

import inspect
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from finetune_cli.app import app
from finetune_cli.errors import EXIT_CODE_MEANINGS

_INTRODUCTION = """# kubectl finetune

Generated from the commands in `cli/finetune_cli`; `kubectl finetune COMMAND --help` says the same. How they are used is
told in [the command line](../user/command-line.md).
"""


def command_reference() -> str:
    """Return the page: exit codes, then every command with its arguments and options."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [_INTRODUCTION, "## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {int(code)} | {meaning} |" for code, meaning in EXIT_CODE_MEANINGS.items()]
    panel = None
    for name, command in commands.items():
        if command.rich_help_panel != panel:
            panel = command.rich_help_panel
            lines += ["", f"## {panel}"]
        lines += ["", f"### {name}", "", *_command(name, command)]
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    words = " ".join(str(argument.metavar or argument.name) for argument in arguments)
    yield f"`kubectl finetune {name} [OPTIONS] {words}".rstrip() + "`"
    yield ""
    yield from _help(command.callback)
    shown = [parameter for parameter in (*arguments, *options) if not getattr(parameter, "hidden", False)]
    rows = [_row(parameter) for parameter in shown if parameter.name != "help"]
    if rows:
        yield from ("", "| | value | default | what it is |", "|---|---|---|---|", *rows)


def _help(callback: Any) -> Iterator[str]:
    """Yield what a command says of itself; its examples become a block."""
    text, _, examples = (inspect.getdoc(callback) or "").partition("\nExamples:\n")
    yield text.strip()
    if lines := [line.strip() for line in examples.splitlines() if line.strip()]:
        yield from ("", "```console", *(f"$ {line}" for line in lines), "```")


def _row(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = parameter.metavar if is_argument else ", ".join([*parameter.opts, *parameter.secondary_opts])
    default = parameter.default
    shown_default = "" if default is None or default is False or callable(default) else f"`{_text(default)}`"
    return f"| `{names}` | {_value(parameter)} | {shown_default} | {_cell(parameter.help or '')} |"


def _value(parameter: Any) -> str:
    kind = parameter.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return " \\| ".join(f"`{choice.value}`" for choice in kind)
    if kind is bool:
        return ""
    return {int: "number", float: "number", Path: "path"}.get(kind, "text")


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
