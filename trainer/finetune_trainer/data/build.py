"""From files of rows to packed sequences: the work of `prepare` on data, as one story.

Documents are written to disk as they are made and packed by their lengths afterwards, so that memory does not grow
with the data.
"""

import heapq
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetune_trainer.contract.dataset import ConversationSource, Dataset, EvaluationDataset
from finetune_trainer.contract.preflight import PreflightReport
from finetune_trainer.contract.spec import Training
from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.conversation import Defect
from finetune_trainer.data.heldout import HELDOUT_DIRECTORY, HeldOutRow, write_heldout
from finetune_trainer.data.packed import PACKED_FILE, PackedSequences, PackedWriter, Sequence
from finetune_trainer.data.packing import pack
from finetune_trainer.data.parallel import Workers, workers
from finetune_trainer.data.read import Row, read_rows
from finetune_trainer.data.render import Document, Renderer
from finetune_trainer.data.report import REPORT_FILE, DataReport, RowCount, Segment, Statistics
from finetune_trainer.data.rows import ALSO_SCORED, NOT_DRAWN, Outcome, RowWork
from finetune_trainer.data.split import num_repetitions
from finetune_trainer.errors import TrainerError

logger = logging.getLogger(__name__)

DOCUMENTS_DIRECTORY = "documents"
NAMED_BAD_ROWS_IN_LOG = 20
NAMED_BAD_ROWS_IN_MESSAGE = 3
PROGRESS_INTERVAL_SECONDS = 5.0
SHOWN_TOKENS = 1500  # of the example

# Of calls that do not fit their tools well-known data sets have a few; only a data set that has more of them than
# others is refused.
MISFITS = (Defect.UNKNOWN_FUNCTION, Defect.WRONG_ARGUMENTS)
MAX_MISFIT_PERCENT = 50


@dataclass(frozen=True)
class Source:
    """The files of one data set, each with the name that a person knows it by."""

    dataset: ConversationSource
    name: str
    revision: str | None
    files: tuple[tuple[str, Path], ...]

    @property
    def num_bytes(self) -> int:
        """Size of its files."""
        return sum(path.stat().st_size for _, path in self.files)


@dataclass
class _Findings:
    """What is gathered while rows are read."""

    counts: list[RowCount] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)
    # The held-out rows of the smallest fingerprints: which ones these are does not depend on the order of rows. By
    # the negative fingerprint, so that the largest one is the first to go; equal rows are kept once.
    held_out: dict[int, tuple[HeldOutRow, tuple[Document, ...]]] = field(default_factory=dict)
    held_out_heap: list[int] = field(default_factory=list)
    held_out_beyond: int = 0
    example: Outcome | None = None


def build_data(
    sources: list[Source], work: RowWork, max_held_out: int | None, directory: Path, num_processes: int
) -> DataReport:
    """Write the packed sequences of all sources, the held-out rows, and the report about them, into a directory.

    Args:
        sources: the data sets; those to be scored on come first, so that their rows are known when others are read.
        work: what is done with each row.
        max_held_out: held-out rows that are kept to be scored, at most; None keeps all.
        directory: where everything is written; it is made.
        num_processes: processes that tokenise, at most.

    Raises:
        TrainerError: DATA_INVALID when too many rows are bad or nothing is left; MODEL_UNSUPPORTED when the
            tokenizer makes tokens that the model does not have.
        OSError: the disk is full or cannot be written.
    """
    documents = directory / DOCUMENTS_DIRECTORY
    documents.mkdir(parents=True, exist_ok=True)
    findings = _Findings()
    num_bytes = sum(source.num_bytes for source in sources)
    with PackedWriter(documents / PACKED_FILE) as writer, workers(work, num_bytes, num_processes) as many:
        for source in sources:
            for document in _documents(source, many, findings, max_held_out):
                writer.append(_as_sequence([document]))
    packed = _pack_documents(documents, work.training, directory)
    _write_held_out(findings, work.training, directory)
    report = _report(sources, work, findings, packed)
    (directory / REPORT_FILE).write_text(report.model_dump_json(by_alias=True, indent=1), encoding="utf-8")
    return report


# --- rows -------------------------------------------------------------------------------------------------------------


def _documents(source: Source, many: Workers, findings: _Findings, max_held_out: int | None) -> Iterator[Document]:
    """Yield the documents of a data set that are trained on, counting what becomes of each row."""
    count = RowCount()
    findings.counts.append(count)
    said_at = time.monotonic()
    for outcome in many.outcomes(_rows(source), source.dataset):
        count.read += 1
        if outcome.error is not None:
            _note_bad_row(count, f"{outcome.place}: {outcome.error}", outcome.error.defect)
        elif outcome.left_out is not None:
            count.dropped[outcome.left_out] += 1
        else:
            yield from _used(outcome, source, findings, max_held_out)
        if time.monotonic() - said_at > PROGRESS_INTERVAL_SECONDS:
            said_at = time.monotonic()
            logger.info("%s: %d rows read, %d kept", source.name, count.read, count.kept)
    _check_rows(source, count)


def _rows(source: Source) -> Iterator[Row]:
    left = source.dataset.max_samples
    for name, path in source.files:
        for row in read_rows(path, name):
            if left is not None:
                if left == 0:
                    return
                left -= 1
            yield row


def _used(outcome: Outcome, source: Source, findings: _Findings, max_held_out: int | None) -> Iterator[Document]:
    """Yield the documents of a good row, as often as its data set's weight says, or hold it out."""
    count = findings.counts[-1]
    findings.statistics.note(outcome)
    if outcome.held_out is not None:
        count.held_out += 1
        row = HeldOutRow(source.name, outcome.place, outcome.held_out)
        _hold_out(outcome.fingerprint, row, outcome.documents, findings, max_held_out)
        return
    if outcome.fingerprint in findings.held_out:
        count.dropped[ALSO_SCORED] += 1
        return
    assert isinstance(source.dataset, Dataset), "every row of the others is held out"
    repetitions = num_repetitions(outcome.fingerprint, source.dataset.weight)
    if repetitions == 0:
        count.dropped[NOT_DRAWN] += 1
        return
    count.kept += 1
    count.truncated += outcome.is_cut
    findings.statistics.note_trained(outcome)
    if findings.example is None or (outcome.calls and not findings.example.calls):
        findings.example = outcome
    for _ in range(repetitions):
        yield from outcome.documents


def _hold_out(
    fingerprint: int, row: HeldOutRow, documents: tuple[Document, ...], findings: _Findings, max_held_out: int | None
) -> None:
    if fingerprint in findings.held_out:
        return
    findings.held_out[fingerprint] = (row, documents)
    if max_held_out is None:
        return
    heapq.heappush(findings.held_out_heap, -fingerprint)
    if len(findings.held_out) > max_held_out:
        del findings.held_out[-heapq.heappop(findings.held_out_heap)]
        findings.held_out_beyond += 1


def _note_bad_row(count: RowCount, problem: str, defect: Defect) -> None:
    count.dropped[defect] += 1
    if len(count.bad_rows) < NAMED_BAD_ROWS_IN_LOG:
        count.bad_rows.append(problem)
        logger.warning("%s", problem)
    elif sum(count.dropped[each] for each in Defect) == NAMED_BAD_ROWS_IN_LOG + 1:
        logger.warning("more bad rows are counted, but no longer named")


def _check_rows(source: Source, count: RowCount) -> None:
    misfits = sum(count.dropped[defect] for defect in MISFITS)
    bad = sum(count.dropped[defect] for defect in Defect) - misfits
    examples = "; ".join(count.bad_rows[:NAMED_BAD_ROWS_IN_MESSAGE])
    allowed_percent = source.dataset.max_bad_row_percent
    dropped = ", ".join(f"{number} {reason}" for reason, number in count.dropped.items() if number)
    if count.read == 0:
        raise TrainerError(Reason.DATA_INVALID, f"{source.name}: has no rows")
    if 100 * bad > allowed_percent * count.read:
        raise TrainerError(
            Reason.DATA_INVALID,
            f"{source.name}: {bad} of {count.read} rows are bad ({dropped}), more than the {allowed_percent} percent "
            f"that maxBadRowPercent allows: mend them, or allow more to leave them out. {examples}",
        )
    if 100 * misfits > max(MAX_MISFIT_PERCENT, allowed_percent) * count.read:
        raise TrainerError(
            Reason.DATA_INVALID,
            f"{source.name}: in {misfits} of {count.read} rows calls do not fit the tools: mend them, or raise "
            f"maxBadRowPercent to leave them out. {examples}",
        )
    if count.kept + count.held_out == 0:
        raise TrainerError(
            Reason.DATA_INVALID,
            f"{source.name}: none of {count.read} rows is left to train on: {dropped}. {examples}".rstrip(),
        )


# --- files ------------------------------------------------------------------------------------------------------------


def _as_sequence(documents: list[Document]) -> Sequence:
    return Sequence(
        tokens=np.concatenate([document.tokens for document in documents]),
        trained=np.concatenate([document.trained for document in documents]),
        document_lengths=np.array([len(document.tokens) for document in documents], dtype=np.int32),
    )


def _pack_documents(documents_directory: Path, training: Training, directory: Path) -> PackedSequences:
    documents = PackedSequences.open(documents_directory)
    lengths = documents.num_tokens_by_sequence
    if not len(lengths):
        raise TrainerError(
            Reason.DATA_INVALID,
            "every row is held out, scored in evaluation.datasets, or not drawn by its weight: lower "
            "evaluation.holdout.share, or add rows",
        )
    groups = (
        pack(lengths, training.max_sequence_length)
        if training.packing
        else list(np.arange(len(lengths), dtype=np.int64)[:, None])
    )
    with PackedWriter(directory / PACKED_FILE) as writer:
        for group in groups:
            parts = [documents.sequence(int(index)) for index in group]
            writer.append(_as_sequence([Document(part.tokens, part.trained) for part in parts]))
    (documents_directory / PACKED_FILE).unlink()
    documents_directory.rmdir()
    return PackedSequences.open(directory)


def _write_held_out(findings: _Findings, training: Training, directory: Path) -> None:
    """Write the held-out rows as conversations and, where there are any, as packed sequences."""
    rows = [findings.held_out[fingerprint] for fingerprint in sorted(findings.held_out)]
    write_heldout(directory, (row for row, _ in rows))
    if not rows:
        return
    documents = [document for _, documents in rows for document in documents]
    lengths = np.array([len(document.tokens) for document in documents], dtype=np.int64)
    (directory / HELDOUT_DIRECTORY).mkdir()
    with PackedWriter(directory / HELDOUT_DIRECTORY / PACKED_FILE) as writer:
        for group in pack(lengths, training.max_sequence_length):
            writer.append(_as_sequence([documents[int(index)] for index in group]))


# --- the report -------------------------------------------------------------------------------------------------------


def _report(sources: list[Source], work: RowWork, findings: _Findings, packed: PackedSequences) -> DataReport:
    counts, statistics = findings.counts, findings.statistics
    example = findings.example
    # As the manifest has them: those to train on first.
    listed = sorted(zip(sources, counts, strict=True), key=lambda pair: isinstance(pair[0].dataset, EvaluationDataset))
    return DataReport(
        datasets=tuple(count.report(source.name, source.revision) for source, count in listed),
        preflight=_preflight(work, findings, packed),
        tokens=packed.num_tokens,
        trained_tokens=int(packed.num_targets.sum()),
        sequences=len(packed),
        max_sequence_length=work.training.max_sequence_length,
        truncated_conversations=sum(count.truncated for count in counts),
        lengths=statistics.bins(),
        functions=statistics.functions(),
        example_place=example.place if example else "",
        example=_segments(work.renderer, example.documents[0]) if example else (),
        bad_rows=tuple(problem for count in counts for problem in count.bad_rows),
        notes=(
            *work.renderer.template.notes,
            *(note for count in counts for note in _notes_on_rows(count)),
            *_notes_on_held_out(work, findings),
        ),
    )


def _preflight(work: RowWork, findings: _Findings, packed: PackedSequences) -> PreflightReport:
    statistics = findings.statistics
    lengths = statistics.lengths
    p50, p95 = np.percentile(lengths, [50, 95], method="inverted_cdf")
    return PreflightReport(
        conversations=len(lengths),
        held_out_rows=len(findings.held_out),
        duplicate_rows=statistics.num_duplicates,
        tokens_mean=round(float(lengths.mean()), 1),
        tokens_p50=int(p50),
        tokens_p95=int(p95),
        tokens_max=int(lengths.max()),
        truncated_share=round(sum(count.truncated for count in findings.counts) / len(lengths), 4),
        packing_efficiency=round(packed.num_tokens / (len(packed) * work.training.max_sequence_length), 4),
        tools=statistics.num_functions,
        tool_calls=statistics.num_calls,
        chat_template=work.renderer.template.description,
    )


def _segments(renderer: Renderer, document: Document) -> tuple[Segment, ...]:
    shown = Document(document.tokens[:SHOWN_TOKENS], document.trained[:SHOWN_TOKENS])
    segments = [Segment(text=text, trained=trained) for text, trained in renderer.show(shown)]
    if len(document.tokens) > SHOWN_TOKENS:
        segments.append(Segment(text=f" [... {len(document.tokens) - SHOWN_TOKENS} more tokens]", trained=False))
    return tuple(segments)


def _notes_on_rows(count: RowCount) -> list[str]:
    if not count.bad_rows:
        return []
    num_bad = sum(count.dropped[defect] for defect in Defect)
    examples = "; ".join(problem[:200] for problem in count.bad_rows[:NAMED_BAD_ROWS_IN_MESSAGE])
    return [f"{num_bad} bad rows were left out: {examples}"]


def _notes_on_held_out(work: RowWork, findings: _Findings) -> list[str]:
    if findings.held_out_beyond:
        return [
            f"{findings.held_out_beyond} held-out rows beyond evaluation.holdout.maxRows are neither trained on nor "
            "scored; a smaller evaluation.holdout.share leaves more for the training"
        ]
    if work.holdout_share > 0 and not findings.held_out:
        return ["no row fell into evaluation.holdout.share: nothing can be scored; raise it, or add rows"]
    return []
