"""Rows out of files, one after another, each with the place it came from.

JSON Lines, JSON (an array of rows) and Parquet. Files are streamed: a data set may be larger than memory.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.conversation import BadRowError, JsonObject
from finetune_trainer.errors import TrainerError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
CHUNK_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Row:
    """A row of a file. `number` counts from 1; in JSON Lines it is the line's number."""

    file: str
    number: int
    value: JsonObject | BadRowError

    @property
    def place(self) -> str:
        """Where a person finds the row."""
        return f"{self.file}, row {self.number}"


def find_files(path: Path) -> list[Path]:
    """Return the data files at a path: the file itself, or all in a directory, in the order of their names.

    Raises:
        TrainerError: DATA_UNAVAILABLE when there is nothing, or nothing that can be read.
    """
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise TrainerError(Reason.DATA_UNAVAILABLE, f"{path}: expected a file with suffix {', '.join(SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise TrainerError(Reason.DATA_UNAVAILABLE, f"{path}: there is no such file or directory")
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in SUFFIXES)
    if not files:
        raise TrainerError(Reason.DATA_UNAVAILABLE, f"{path}: holds no file with suffix {', '.join(SUFFIXES)}")
    return files


def read_rows(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of a file; `name` is what a person calls it.

    Raises:
        TrainerError: DATA_INVALID when the file is damaged so that no next row can be found.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, name)
        return
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = _first_character(file)
            yield from _array_rows(file, name) if start == "[" else _line_rows(file, name)
    except UnicodeDecodeError as error:
        raise TrainerError(Reason.DATA_INVALID, f"{name}: is not UTF-8: {error}") from error


def _first_character(file: TextIO) -> str:
    while (character := file.read(1)).isspace():
        pass
    file.seek(0)
    return character


def _line_rows(file: TextIO, name: str) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield Row(name, number, _object(line))


def _object(text: str) -> JsonObject | BadRowError:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRowError(f"is not JSON: {error}")
    return value if isinstance(value, dict) else BadRowError(f"is not a JSON object but {_kind(value)}")


def _array_rows(file: TextIO, name: str) -> Iterator[Row]:
    decoder = json.JSONDecoder()
    buffer = file.read(CHUNK_CHARACTERS)
    position = buffer.index("[") + 1
    number = 0
    while True:
        position = _skip_separators(buffer, position)
        if buffer.startswith("]", position):
            return
        try:
            value, position = decoder.raw_decode(buffer, position)
        except RecursionError as error:
            raise TrainerError(
                Reason.DATA_INVALID, f"{name}, row {number + 1}: nests too deep to be read; mend the file"
            ) from error
        except ValueError as error:
            # The row may go on behind what was read so far. Twice as much each time, so that a long row is read in
            # linear time.
            more = file.read(max(CHUNK_CHARACTERS, len(buffer) - position))
            if not more:
                raise TrainerError(
                    Reason.DATA_INVALID, f"{name}, row {number + 1}: is not JSON: {error}; mend the file"
                ) from error
            buffer, position = buffer[position:] + more, 0
            continue
        number += 1
        yield Row(
            name, number, value if isinstance(value, dict) else BadRowError(f"is {_kind(value)}, not a JSON object")
        )


def _skip_separators(buffer: str, position: int) -> int:
    while position < len(buffer) and buffer[position] in " \t\r\n,":
        position += 1
    return position


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(name, number, value)
    except (pa.ArrowInvalid, OSError) as error:
        raise TrainerError(Reason.DATA_INVALID, f"{name}: cannot be read as Parquet: {error}") from error


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), f"a {type(value).__name__}")
