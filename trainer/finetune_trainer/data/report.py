"""What became of all rows, and what the data is like: the preflight report."""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from pydantic import Field

from finetune_trainer.contract.preflight import PreflightReport
from finetune_trainer.contract.report import Report
from finetune_trainer.contract.termination import DatasetReport
from finetune_trainer.data.rows import Outcome

REPORT_FILE = "report.json"
NUM_BINS = 24
SHOWN_FUNCTIONS = 30
# Functions are counted by name as long as there are not more of them: memory must not grow with the data.
MAX_FUNCTIONS = 100_000


class Bin(Report):
    """Conversations of a range of lengths."""

    first: int = Field(description="Tokens of the shortest that may be in it.")
    last: int = Field(description="Tokens of the longest that may be in it.")
    conversations: int


class FunctionReport(Report):
    """How often a function could be called, and was."""

    name: str
    conversations: int = Field(description="Conversations that have it among their tools.")
    calls: int


class Segment(Report):
    """A piece of a rendered example."""

    text: str
    trained: bool = Field(description="Whether the model learns to write it.")


class DataReport(Report):
    """What became of all rows; written beside the packed data."""

    datasets: tuple[DatasetReport, ...] = Field(description="What became of the rows of each data set.")
    preflight: PreflightReport
    tokens: int = Field(description="Tokens of all sequences.")
    trained_tokens: int = Field(description="Tokens that carry a loss.")
    sequences: int = Field(description="Packed sequences.")
    max_sequence_length: int = Field(description="Tokens that a sequence may have.")
    truncated_conversations: int = Field(description="Conversations cut at maxSequenceLength.")
    lengths: tuple[Bin, ...] = Field(default=(), description="Conversations by their tokens.")
    functions: tuple[FunctionReport, ...] = Field(default=(), description="The functions that are called most.")
    example_place: str = Field(default="", description="File and row of the example.")
    example: tuple[Segment, ...] = Field(default=(), description="A conversation as the model reads it.")
    bad_rows: tuple[str, ...] = Field(default=(), description="The first bad rows: file, row, field, and mend.")
    notes: tuple[str, ...] = Field(default=(), description="What a person should know about the data.")


@dataclass
class RowCount:
    """Rows of one data set while they are read."""

    read: int = 0
    kept: int = 0
    held_out: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    bad_rows: list[str] = field(default_factory=list)

    def report(self, name: str, revision: str | None) -> DatasetReport:
        """Return the counts as they are reported."""
        return DatasetReport(
            name=name,
            revision=revision,
            rows_read=self.read,
            rows_kept=self.kept,
            rows_held_out=self.held_out,
            dropped=dict(self.dropped),
        )


class Statistics:
    """What is remembered of each row that could be used: a dozen bytes."""

    def __init__(self) -> None:
        self._lengths = array("I")
        self._fingerprints = array("Q")
        self._offered: Counter[str] = Counter()
        self._called: Counter[str] = Counter()

    def note(self, outcome: Outcome) -> None:
        """Remember a row that can be used, held out or not."""
        self._fingerprints.append(outcome.fingerprint)
        for counter, names in ((self._offered, outcome.tools), (self._called, outcome.calls)):
            for name in names:
                if name in counter or len(counter) < MAX_FUNCTIONS:
                    counter[name] += 1

    def note_trained(self, outcome: Outcome) -> None:
        """Remember a row that is trained on."""
        self._lengths.append(outcome.num_tokens)

    @property
    def lengths(self) -> npt.NDArray[np.uint32]:
        """Tokens of each conversation that is trained on, before it is cut."""
        return np.frombuffer(self._lengths, dtype=np.uint32) if self._lengths else np.zeros(0, np.uint32)

    @property
    def num_duplicates(self) -> int:
        """Rows whose turns are equal to those of an earlier row."""
        fingerprints = np.frombuffer(self._fingerprints, dtype=np.uint64) if self._fingerprints else np.zeros(0)
        return len(fingerprints) - len(np.unique(fingerprints))

    @property
    def num_functions(self) -> int:
        """Different functions among the tools."""
        return len(self._offered)

    @property
    def num_calls(self) -> int:
        """Calls of functions."""
        return self._called.total()

    def functions(self) -> tuple[FunctionReport, ...]:
        """Return the functions that are called most, those that are never called behind them."""
        names = sorted(self._offered, key=lambda name: (-self._called[name], name))[:SHOWN_FUNCTIONS]
        return tuple(
            FunctionReport(name=name, conversations=self._offered[name], calls=self._called[name]) for name in names
        )

    def bins(self) -> tuple[Bin, ...]:
        """Return the conversations by their lengths, in ranges of equal width that hold all of them."""
        lengths = self.lengths
        if not len(lengths):
            return ()
        width = -(-int(lengths.max()) // NUM_BINS)
        counts = np.bincount((lengths - 1) // width, minlength=1)
        edges = [number * width for number in range(len(counts) + 1)]
        return tuple(
            Bin(first=first + 1, last=last, conversations=int(count))
            for (first, last), count in zip(pairwise(edges), counts, strict=True)
        )


def describe(report: DataReport) -> Iterator[str]:
    """Yield the lines of the report for a log."""
    found = report.preflight
    for dataset in report.datasets:
        dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(dataset.dropped.items())) or "none"
        yield (
            f"{dataset.name}: {dataset.rows_read} rows read, {dataset.rows_kept} kept, {dataset.rows_held_out} held "
            f"out, left out: {dropped}"
        )
    yield (
        f"tokens of a conversation: mean {found.tokens_mean:.0f}, median {found.tokens_p50}, 95 % "
        f"{found.tokens_p95}, longest {found.tokens_max}; {100 * found.truncated_share:.1f} % are cut at "
        f"{report.max_sequence_length}"
    )
    yield (
        f"{found.conversations} conversations in {report.sequences} sequences, {100 * found.packing_efficiency:.1f} % "
        f"filled; {found.held_out_rows} rows held out, {found.duplicate_rows} duplicates; {found.tools} functions, "
        f"{found.tool_calls} calls"
    )
    yield f"chat template: {found.chat_template}"
    yield f"example ({report.example_place}), what is trained between >>> and <<<:"
    text = "".join(f">>>{part.text}<<<" if part.trained else part.text for part in report.example)
    for line in text.splitlines():
        yield f"  | {line}"
