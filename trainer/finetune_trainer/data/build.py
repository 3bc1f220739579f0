"""From files of rows to packed sequences: the work of `prepare` on data, as one story.

Documents are written to disk as they are made and packed by their lengths afterwards, so that memory does not grow
with the data.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import Field

from finetune_trainer.contract.report import Report
from finetune_trainer.contract.spec import Dataset, Overlong, Training
from finetune_trainer.contract.termination import DatasetReport, Reason
from finetune_trainer.data.conversation import BadRowError, Conversation
from finetune_trainer.data.formats import parse_row
from finetune_trainer.data.packed import PACKED_FILE, PackedSequences, PackedWriter, Sequence
from finetune_trainer.data.packing import pack
from finetune_trainer.data.read import Row, read_rows
from finetune_trainer.data.render import Document, Renderer
from finetune_trainer.errors import TrainerError

logger = logging.getLogger(__name__)

REPORT_FILE = "report.json"
DOCUMENTS_DIRECTORY = "documents"
NAMED_BAD_ROWS_IN_LOG = 20
NAMED_BAD_ROWS_IN_MESSAGE = 3
PROGRESS_INTERVAL_SECONDS = 5.0

# Why rows are left out, as the report counts them.
MALFORMED = "malformed"
OVERLONG = "longer than maxSequenceLength"
NOTHING_TRAINED = "assistant only beyond maxSequenceLength"


@dataclass(frozen=True)
class Source:
    """The files of one data set, each with the name that a person knows it by."""

    dataset: Dataset
    name: str
    revision: str | None
    files: tuple[tuple[str, Path], ...]


class DataReport(Report):
    """What became of all rows; written beside the packed data."""

    datasets: tuple[DatasetReport, ...] = Field(description="What became of the rows of each data set.")
    tokens: int = Field(description="Tokens of all sequences.")
    trained_tokens: int = Field(description="Tokens that carry a loss.")
    sequences: int = Field(description="Packed sequences.")
    truncated_conversations: int = Field(description="Conversations cut at maxSequenceLength.")
    notes: tuple[str, ...] = Field(default=(), description="What a person should know about the data.")


@dataclass
class _Count:
    """Rows of one data set while they are read."""

    read: int = 0
    kept: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    bad_rows: list[str] = field(default_factory=list)

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1


def build_data(
    sources: list[Source], renderer: Renderer, training: Training, vocab_size: int, directory: Path
) -> DataReport:
    """Write the packed sequences of all sources, and the report about them, into a directory.

    Raises:
        TrainerError: DATA_INVALID when too many rows are malformed or nothing is left; MODEL_UNSUPPORTED when the
            tokenizer makes tokens that the model does not have.
        OSError: the disk is full or cannot be written.
    """
    documents = directory / DOCUMENTS_DIRECTORY
    documents.mkdir(parents=True, exist_ok=True)
    counts = []
    with PackedWriter(documents / PACKED_FILE) as writer:
        for source in sources:
            count = _Count()
            for document in _documents(source, renderer, training, count):
                _check_vocabulary(document, vocab_size)
                writer.append(_as_sequence([document]))
            _check_rows(source, count)
            counts.append(count)
    packed = _pack_documents(documents, training, directory)
    report = DataReport(
        datasets=tuple(
            DatasetReport(
                name=source.name,
                revision=source.revision,
                rows_read=count.read,
                rows_kept=count.kept,
                dropped=count.dropped,
            )
            for source, count in zip(sources, counts, strict=True)
        ),
        tokens=packed.num_tokens,
        trained_tokens=int(packed.num_targets.sum()),
        sequences=len(packed),
        truncated_conversations=sum(count.truncated for count in counts),
        notes=(*_notes_on_template(renderer), *(note for count in counts for note in _notes_on_rows(count))),
    )
    (directory / REPORT_FILE).write_text(report.model_dump_json(by_alias=True, indent=1), encoding="utf-8")
    return report


def _documents(source: Source, renderer: Renderer, training: Training, count: _Count) -> Iterator[Document]:
    """Yield the documents of a data set that are trained on, counting what becomes of each row."""
    said_at = time.monotonic()
    for row in _rows(source):
        count.read += 1
        try:
            documents = renderer.render(_conversation(row, source.dataset))
        except BadRowError as error:
            _note_bad_row(count, f"{row.place}: {error}")
            continue
        yield from _fitted(documents, training, count)
        if time.monotonic() - said_at > PROGRESS_INTERVAL_SECONDS:
            said_at = time.monotonic()
            logger.info("%s: %d rows read, %d kept", source.name, count.read, count.kept)


def _rows(source: Source) -> Iterator[Row]:
    left = source.dataset.max_samples
    for name, path in source.files:
        for row in read_rows(path, name):
            if left is not None:
                if left == 0:
                    return
                left -= 1
            yield row


def _conversation(row: Row, dataset: Dataset) -> Conversation:
    if isinstance(row.value, BadRowError):
        raise row.value
    return parse_row(row.value, dataset.format)


def _fitted(documents: list[Document], training: Training, count: _Count) -> list[Document]:
    """Cut or leave out what is longer than a sequence, and leave out what trains nothing."""
    length = training.max_sequence_length
    is_overlong = any(len(document.tokens) > length for document in documents)
    if is_overlong and training.overlong is Overlong.DROP:
        count.drop(OVERLONG)
        return []
    cut = [Document(document.tokens[:length], document.trained[:length]) for document in documents]
    # The first token of a document is predicted by nothing.
    fitted = [document for document in cut if document.trained[1:].any()]
    if not fitted:
        count.drop(NOTHING_TRAINED)
        return []
    count.kept += 1
    count.truncated += is_overlong
    return fitted


def _note_bad_row(count: _Count, problem: str) -> None:
    count.drop(MALFORMED)
    if len(count.bad_rows) < NAMED_BAD_ROWS_IN_LOG:
        count.bad_rows.append(problem)
        logger.warning("%s", problem)
    elif count.dropped[MALFORMED] == NAMED_BAD_ROWS_IN_LOG + 1:
        logger.warning("more malformed rows are counted, but no longer named")


def _check_rows(source: Source, count: _Count) -> None:
    malformed, allowed_percent = count.dropped.get(MALFORMED, 0), source.dataset.max_bad_row_percent
    dropped = ", ".join(f"{number} {reason}" for reason, number in count.dropped.items())
    logger.info("%s: %d rows read, %d kept, left out: %s", source.name, count.read, count.kept, dropped or "none")
    if count.read == 0:
        raise TrainerError(Reason.DATA_INVALID, f"{source.name}: has no rows")
    if 100 * malformed > allowed_percent * count.read:
        examples = "; ".join(count.bad_rows[:NAMED_BAD_ROWS_IN_MESSAGE])
        raise TrainerError(
            Reason.DATA_INVALID,
            f"{source.name}: {malformed} of {count.read} rows are malformed, more than the {allowed_percent} percent "
            f"that maxBadRowPercent allows. {examples}",
        )
    if count.kept == 0:
        raise TrainerError(
            Reason.DATA_INVALID, f"{source.name}: none of {count.read} rows is left to train on: {dropped}"
        )


def _check_vocabulary(document: Document, vocab_size: int) -> None:
    if int(document.tokens.max()) >= vocab_size:
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"the tokenizer makes token {int(document.tokens.max())}, but the model has {vocab_size}: tokenizer.json "
            "and config.json belong to different models",
        )


def _as_sequence(documents: list[Document]) -> Sequence:
    return Sequence(
        tokens=np.concatenate([document.tokens for document in documents]),
        trained=np.concatenate([document.trained for document in documents]),
        document_lengths=np.array([len(document.tokens) for document in documents], dtype=np.int32),
    )


def _pack_documents(documents_directory: Path, training: Training, directory: Path) -> PackedSequences:
    documents = PackedSequences.open(documents_directory)
    lengths = documents.num_tokens_by_sequence
    groups = (
        pack(lengths, training.max_sequence_length) if training.packing else [[index] for index in range(len(lengths))]
    )
    with PackedWriter(directory / PACKED_FILE) as writer:
        for group in groups:
            parts = [documents.sequence(index) for index in group]
            writer.append(_as_sequence([Document(part.tokens, part.trained) for part in parts]))
    (documents_directory / PACKED_FILE).unlink()
    documents_directory.rmdir()
    packed = PackedSequences.open(directory)
    filled = packed.num_tokens / (len(packed) * training.max_sequence_length)
    logger.info(
        "%d documents in %d sequences of at most %d tokens, %.1f %% filled",
        len(lengths),
        len(packed),
        training.max_sequence_length,
        100 * filled,
    )
    return packed


def _notes_on_rows(count: _Count) -> list[str]:
    if not count.bad_rows:
        return []
    examples = "; ".join(problem[:200] for problem in count.bad_rows[:NAMED_BAD_ROWS_IN_MESSAGE])
    return [f"{count.dropped[MALFORMED]} malformed rows were left out: {examples}"]


def _notes_on_template(renderer: Renderer) -> tuple[str, ...]:
    style, notes = renderer.template.style, []
    if not style.takes_tools:
        notes.append("the model's chat template takes no tools: they are written in the Hermes notation")
    elif not style.takes_parallel_calls:
        notes.append("the model's chat template takes one tool call a turn: parallel calls are made one after another")
    if not style.takes_system:
        notes.append("the model's chat template takes no system turn: its words are put before the first user turn's")
    if not renderer.ends_turns:
        notes.append("the model's chat template ends a turn with no special token: the model may not learn to stop")
    return tuple(notes)
