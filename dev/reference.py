"""The pages of docs/reference that are generated: each from what the programs themselves read."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from finetune_operator.failure_table import FAILURES, Remedy
from finetune_operator.names import ConditionReason
from finetune_trainer.contract.termination import Reason

_VALUE_LINE = re.compile(r"^(?P<indent> *)(?P<name>[A-Za-z][A-Za-z0-9]*):(?P<rest>.*)$")
_WHAT_FOLLOWS = {
    Remedy.FAIL: "the job has failed",
    Remedy.RESTART: "a new attempt from the last checkpoint, up to `runPolicy.maxRestarts`",
    Remedy.RESTART_ONCE: "one new attempt; if it happens again the job has failed",
}


def values_page(values_text: str) -> str:
    """Return the page on the chart's values: each with its default, and the comment that stands above it.

    Args:
        values_text: values.yaml as it is written.
    """
    values = yaml.safe_load(values_text)
    lines = [
        "# Chart values",
        "",
        "Generated from `helm/finetune-operator/values.yaml`. A misspelt value is refused at install, by "
        "`values.schema.json`.",
        "",
        "| value | default | what it is |",
        "|---|---|---|",
    ]
    for path, comment in _commented_values(values_text.splitlines()):
        default = _at(values, path)
        is_group = isinstance(default, Mapping) and default
        text = " ".join(comment).replace("|", "\\|")
        if is_group and not text:
            continue
        shown = "" if is_group else f"`{yaml.safe_dump(default, default_flow_style=True).splitlines()[0]}`"
        lines.append(f"| `{'.'.join(path)}` | {shown} | {text} |")
    return "\n".join(lines) + "\n"


def _commented_values(lines: Sequence[str]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield the path of every value and the lines of the comment above it, in the order in which they stand."""
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in lines:
        if line.lstrip().startswith("#"):
            text = line.lstrip().removeprefix("#")
            if not text.startswith("   "):  # an example
                comment.append(text.strip().removesuffix(" For example:"))
            continue
        found = _VALUE_LINE.match(line)
        if found is not None:
            indent = len(found["indent"])
            path = [*((depth, name) for depth, name in path if depth < indent), (indent, found["name"])]
            yield tuple(name for _, name in path), comment
        comment = []


def _at(values: Any, path: Sequence[str]) -> Any:
    for name in path:
        values = values[name]
    return values


def reasons_page() -> str:
    """Return the page on what follows from each reason for which an attempt or a stage ends."""
    lines = [
        "# Reasons",
        "",
        "Why an attempt ended, and what follows: generated from `finetune_operator.failure_table`. The "
        "trainer writes its reason into the container's termination message, and ends with exit code 0 (Succeeded), "
        "143 (Terminated: it was told to stop and left a checkpoint) or 1 (all others). What to do about each is in "
        "[troubleshooting](../user/troubleshooting.md).",
        "",
        "| reason | seen by | what follows | because |",
        "|---|---|---|---|",
    ]
    for reason, consequence in sorted(FAILURES.items()):
        seen_by = "trainer" if reason in set(Reason) else "operator"
        lines.append(f"| {reason} | {seen_by} | {_WHAT_FOLLOWS[consequence.remedy]} | {consequence.why} |")
    others = sorted({str(reason) for reason in ConditionReason} - set(map(str, FAILURES)))
    lines += [
        "",
        "The other reasons of conditions and Events say where a job stands or what it waits for, and end nothing: "
        f"{', '.join(others)}.",
    ]
    return "\n".join(lines) + "\n"


def commands_page(helps: Mapping[str, str]) -> str:
    """Return the page on the programs.

    Args:
        helps: what each command prints with --help.
    """
    lines = ["# Commands", "", "What each program prints with `--help`, generated from the programs."]
    for command, text in helps.items():
        lines += ["", f"## {command}", "", "```text", text.rstrip(), "```"]
    return "\n".join(lines) + "\n"
