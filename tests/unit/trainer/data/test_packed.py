"""Packed sequences on disk."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data import packed
from finetune_trainer.data.packed import PACKED_FILE, PackedSequences, PackedWriter, Sequence
from finetune_trainer.errors import TrainerError


def sequence(tokens: list[int], trained: list[int], *lengths: int) -> Sequence:
    return Sequence(
        np.array(tokens, np.int32), np.array(trained, np.bool_), np.array(lengths or [len(tokens)], np.int32)
    )


def write(directory: Path, sequences: list[Sequence]) -> PackedSequences:
    with PackedWriter(directory / PACKED_FILE) as writer:
        for one in sequences:
            writer.append(one)
    return PackedSequences.open(directory)


def test_sequences_are_read_as_they_were_written_over_many_record_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "SEQUENCES_PER_RECORD_BATCH", 3)
    written = [sequence([index, 7, 9][: 1 + index % 3], [1, 0, 1][: 1 + index % 3]) for index in range(8)]
    opened = write(tmp_path, written)
    assert len(opened) == 8
    for index, one in enumerate(written):
        read = opened.sequence(index)
        assert read.tokens.tolist() == one.tokens.tolist()
        assert read.trained.tolist() == one.trained.tolist()
        assert read.document_lengths.tolist() == one.document_lengths.tolist()
        assert (read.tokens.dtype, read.trained.dtype, read.document_lengths.dtype) == (np.int32, np.bool_, np.int32)


def test_targets_are_the_trained_tokens_that_are_not_the_first_of_their_document(tmp_path: Path) -> None:
    opened = write(
        tmp_path,
        [
            sequence([1, 2, 3], [1, 1, 1]),  # 2 and 3
            sequence([1, 2, 3, 4, 5], [1, 0, 1, 1, 0], 2, 3),  # 4; 1 and 3 are first
            sequence([1, 2], [1, 0], 1, 1),  # none
        ],
    )
    assert opened.num_targets.tolist() == [2, 1, 0]
    assert opened.num_targets.dtype == np.int64
    assert opened.num_tokens_by_sequence.tolist() == [3, 5, 2]


def test_tokens_are_mapped_not_copied(tmp_path: Path) -> None:
    opened = write(tmp_path, [sequence([1, 2, 3], [1, 1, 1])])
    before = pa.total_allocated_bytes()
    tokens = opened.sequence(0).tokens
    assert not tokens.flags.owndata
    assert pa.total_allocated_bytes() == before


@pytest.mark.parametrize(
    "broken", [sequence([], []), sequence([1, 2], [1]), sequence([1, 2], [1, 1], 1), sequence([1], [1], 1, 0)]
)
def test_a_sequence_whose_parts_do_not_fit_is_refused(broken: Sequence, tmp_path: Path) -> None:
    with PackedWriter(tmp_path / PACKED_FILE) as writer, pytest.raises(ValueError, match="tokens"):
        writer.append(broken)


def test_an_index_out_of_range_is_refused(tmp_path: Path) -> None:
    opened = write(tmp_path, [sequence([1], [1])])
    for index in (-1, 1):
        with pytest.raises(IndexError):
            opened.sequence(index)


def test_a_file_whose_writer_failed_cannot_be_opened(tmp_path: Path) -> None:
    with suppress(ValueError), PackedWriter(tmp_path / PACKED_FILE) as writer:
        writer.append(sequence([1], [1]))
        writer.append(sequence([], []))
    with pytest.raises(TrainerError) as error:
        PackedSequences.open(tmp_path)
    assert error.value.reason is Reason.DATA_UNAVAILABLE
    assert "run prepare again" in error.value.message


def test_a_missing_file_and_one_of_another_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=PACKED_FILE):
        PackedSequences.open(tmp_path)
    batch = pa.record_batch({"tokens": [[1]]})
    with pa.ipc.new_file(str(tmp_path / PACKED_FILE), batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(TrainerError, match="another version"):
        PackedSequences.open(tmp_path)
