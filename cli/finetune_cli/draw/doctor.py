"""What `doctor` shows: each finding in a word, in a sentence, and with the command that mends it."""

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from finetune_cli.findings import Finding, Level

_STYLES = {Level.OK: "green", Level.UNKNOWN: "dim", Level.WAIT: "yellow", Level.PROBLEM: "bold red"}
_MARKS = {Level.OK: "ok", Level.UNKNOWN: "?", Level.WAIT: "waits", Level.PROBLEM: "PROBLEM"}


def draw_findings(findings: Sequence[Finding]) -> Text:
    """Return all findings, and in the last line how many there are to act on."""
    mark_width = max(len(mark) for mark in _MARKS.values())
    subject_width = max((len(finding.subject) for finding in findings), default=0)
    indent = " " * (mark_width + subject_width + 4)
    lines = []
    for finding in findings:
        line = Text.assemble(
            (_MARKS[finding.level].ljust(mark_width), _STYLES[finding.level]),
            "  ",
            (finding.subject.ljust(subject_width), "bold"),
            "  ",
            finding.words,
        )
        lines.append(line)
        if finding.command:
            lines.append(Text.assemble(indent, ("-> ", "cyan"), finding.command))
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    last = "Nothing to mend was found." if not problems else f"{problems} to mend."
    return Text("\n").join([*lines, Text(""), Text(last, style="green" if not problems else "bold")])


def finding_documents(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return the same as data."""
    return [
        {
            "level": finding.level.value,
            "subject": finding.subject,
            "message": finding.words,
            "command": finding.command or None,
        }
        for finding in findings
    ]
