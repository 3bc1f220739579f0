"""What `exec` shows: what each node answered, or every GPU of a job in one table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from finetune_cli.draw.columns import columns
from finetune_cli.draw.shapes import bar
from finetune_cli.pods import PodView

_MIB_PER_GIB = 1024
_BUSY_PERCENT = 85


@dataclass(frozen=True)
class Answer:
    """What came back from one pod."""

    pod: PodView
    exit_code: int | None
    """None where the command could not be run."""
    text: str

    def document(self) -> dict[str, Any]:
        """Return it as data."""
        return {
            "nodeRank": self.pod.node_rank,
            "pod": self.pod.name,
            "node": self.pod.node,
            "exitCode": self.exit_code,
            "output": self.text,
        }


def draw_answers(answers: Sequence[Answer]) -> Text:
    """Return a table with a line for each line that was answered."""
    rows: list[tuple[str | Text, ...]] = []
    for answer in answers:
        first, *further = answer.text.split("\n")
        rows.append((str(answer.pod.node_rank), answer.pod.node or "-", _exit(answer), first))
        rows += [("", "", "", line) for line in further]
    return columns(("rank", "node", "exit", "output"), rows)


def draw_gpus(answers: Sequence[Answer]) -> Text:
    """Return a table of every GPU from what nvidia-smi answered."""
    rows: list[tuple[str | Text, ...]] = []
    for answer in answers:
        node, rank = answer.pod.node or "-", str(answer.pod.node_rank)
        gpus = [_gpu(line) for line in answer.text.splitlines()] if answer.exit_code == 0 else []
        if not gpus:
            what = answer.text.splitlines()[0] if answer.text else "nothing was answered"
            rows.append((rank, node, "", Text(what, style="red"), "", "", "", ""))
        rows += [(rank, node, *gpu) for gpu in gpus]
    return columns(("rank", "node", "gpu", "name", "utilisation", "memory", "temperature", "power"), rows)


def _gpu(line: str) -> tuple[str | Text, ...]:
    """Return a line of `exec.GPU_QUERY` as cells; a value that a GPU does not tell is `[N/A]`."""
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 7:
        return "", Text(line, style="red"), "", "", "", ""
    index, name, utilization, used, total, temperature, power = fields
    busy = _number(utilization)
    style = "green" if busy is not None and busy >= _BUSY_PERCENT else "yellow"
    share = None if busy is None else busy / 100
    memory = f"{_gib(used)}/{_gib(total)} GiB"
    watts = _number(power)
    return (
        index,
        name,
        Text.assemble((bar(share, 10), style), f" {utilization}%" if busy is not None else " ?"),
        memory,
        f"{temperature} C",
        "?" if watts is None else f"{watts:.0f} W",
    )


def _exit(answer: Answer) -> Text:
    return Text(
        "-" if answer.exit_code is None else str(answer.exit_code), style="" if answer.exit_code == 0 else "red"
    )


def _gib(mib: str) -> str:
    value = _number(mib)
    return "?" if value is None else f"{value / _MIB_PER_GIB:.1f}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
