"""Packed sequences on disk: written once by prepare, memory-mapped by every process of the training.

One Arrow IPC file (https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format), one record a sequence.
Nothing is copied when it is opened, so the processes of a node share one copy in the page cache.
"""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError

PACKED_FILE = "packed.arrow"
LAYOUT_VERSION = 1

TOKENS, TRAINED, DOCUMENT_LENGTHS, NUM_TARGETS = "tokens", "trained", "document_lengths", "num_targets"
SCHEMA = pa.schema(
    [
        pa.field(TOKENS, pa.list_(pa.int32()), nullable=False),
        pa.field(TRAINED, pa.list_(pa.bool_()), nullable=False),
        pa.field(DOCUMENT_LENGTHS, pa.list_(pa.int32()), nullable=False),
        pa.field(NUM_TARGETS, pa.int32(), nullable=False),
    ],
    metadata={b"finetune.layout_version": str(LAYOUT_VERSION).encode()},
)
SEQUENCES_PER_RECORD_BATCH = 1024
TOKENS_PER_RECORD_BATCH = 4 << 20  # bounds memory where sequences are long


@dataclass(frozen=True)
class Sequence:
    """One or more documents (conversations) behind each other, which do not see each other."""

    tokens: npt.NDArray[np.int32]  # [num_tokens]
    trained: npt.NDArray[np.bool_]  # [num_tokens]; True where the token is to be predicted
    document_lengths: npt.NDArray[np.int32]  # [num_documents]; their sum is num_tokens

    @property
    def num_targets(self) -> int:
        """Tokens that carry a loss: trained ones that are not the first of their document, as nothing predicts it."""
        firsts = np.cumsum(self.document_lengths) - self.document_lengths
        return int(np.count_nonzero(self.trained)) - int(np.count_nonzero(self.trained[firsts]))


class PackedWriter:
    """Writes sequences to an Arrow file, a record batch at a time, so that memory stays bounded.

    The file is complete only when the context has been left without an error; write it into a directory that gets
    its name afterwards.
    """

    def __init__(self, path: Path) -> None:
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)
        self._pending: list[Sequence] = []
        self._num_pending_tokens = 0

    def append(self, sequence: Sequence) -> None:
        """Add a sequence. Raises ValueError when its parts do not fit each other, OSError when writing fails."""
        num_tokens = len(sequence.tokens)
        if num_tokens == 0 or len(sequence.trained) != num_tokens:
            raise ValueError(f"{num_tokens} tokens, but {len(sequence.trained)} marks of training")
        if int(sequence.document_lengths.sum()) != num_tokens or int(sequence.document_lengths.min()) < 1:
            raise ValueError(f"documents of {sequence.document_lengths.tolist()} tokens do not add up to {num_tokens}")
        self._pending.append(sequence)
        self._num_pending_tokens += num_tokens
        if len(self._pending) == SEQUENCES_PER_RECORD_BATCH or self._num_pending_tokens >= TOKENS_PER_RECORD_BATCH:
            self._flush()

    def _flush(self) -> None:
        columns = [
            _list_array([sequence.tokens for sequence in self._pending], pa.int32()),
            _list_array([sequence.trained for sequence in self._pending], pa.bool_()),
            _list_array([sequence.document_lengths for sequence in self._pending], pa.int32()),
            pa.array([sequence.num_targets for sequence in self._pending], pa.int32()),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        self._pending, self._num_pending_tokens = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                if self._pending:
                    self._flush()
                self._writer.close()
        finally:
            self._sink.close()


class PackedSequences:
    """Sequences of a prepared data set, memory-mapped."""

    def __init__(self, batches: list[pa.RecordBatch]) -> None:
        self._batches = batches
        self._ends = np.cumsum([batch.num_rows for batch in batches], dtype=np.int64)
        counts = [batch.column(NUM_TARGETS).to_numpy() for batch in batches]
        #: Tokens of each sequence that carry a loss, [num_sequences].
        self.num_targets: npt.NDArray[np.int64] = (
            np.concatenate(counts).astype(np.int64) if counts else np.zeros(0, np.int64)
        )

    @classmethod
    def open(cls, directory: Path) -> "PackedSequences":
        """Map the packed data in a directory that prepare wrote.

        Raises:
            TrainerError: DATA_UNAVAILABLE when the file is missing, damaged or of another layout.
        """
        path = directory / PACKED_FILE
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        except (OSError, pa.ArrowInvalid) as error:
            raise TrainerError(
                Reason.DATA_UNAVAILABLE, f"{path}: cannot be read as packed data ({error}); run prepare again"
            ) from error
        if not reader.schema.equals(SCHEMA, check_metadata=True):
            raise TrainerError(
                Reason.DATA_UNAVAILABLE, f"{path}: was written by another version of the trainer; run prepare again"
            )
        return cls([reader.get_batch(index) for index in range(reader.num_record_batches)])

    @property
    def num_tokens_by_sequence(self) -> npt.NDArray[np.int64]:
        """Tokens of each sequence, [num_sequences]."""
        counts = [np.diff(batch.column(TOKENS).offsets.to_numpy()) for batch in self._batches]
        return np.concatenate(counts).astype(np.int64) if counts else np.zeros(0, np.int64)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return int(self.num_tokens_by_sequence.sum())

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def sequence(self, index: int) -> Sequence:
        """Return a sequence. Tokens and lengths are read-only views of the file. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[number]
        row = index - (int(self._ends[number]) - batch.num_rows)
        return Sequence(
            tokens=batch.column(TOKENS)[row].values.to_numpy(),
            # Arrow keeps truth values as bits: these few are unpacked into a copy.
            trained=batch.column(TRAINED)[row].values.to_numpy(zero_copy_only=False),
            document_lengths=batch.column(DOCUMENT_LENGTHS)[row].values.to_numpy(),
        )


def _list_array(rows: list[npt.NDArray[np.int32]] | list[npt.NDArray[np.bool_]], kind: pa.DataType) -> pa.ListArray:
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows), kind))
