"""Rows out of files, one after another, each with the place it came from.

JSON Lines, JSON (an array of rows), CSV, Parquet and Arrow. Files are streamed: a data set may be larger than memory.

Typed tables are read by the `datasets` library. Text is not: there a bad line of JSON fails the whole file, a comma too
many in a CSV file shifts the cells of its row silently, and `NA` and `1` are no longer the texts that they were.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.conversation import BadRowError, Defect, JsonObject
from finetune_trainer.errors import TrainerError

# Names of the builders of `datasets` that read a table with types.
TABLES = {".parquet": "parquet", ".arrow": "arrow"}
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", *TABLES)
CHUNK_CHARACTERS = 1 << 20
# A longer line is passed over unread: it is no conversation, and it must not fill the memory.
LONGEST_LINE = 64 << 20
ROWS_AT_ONCE = 256
# What `Dataset.save_to_disk` writes beside the rows.
BOOKKEEPING = frozenset({"dataset_info.json", "dataset_dict.json", "state.json"})

# How the error handler `surrogateescape` marks bytes that are not UTF-8; in the text of a file nothing else looks so.
_FOREIGN_BYTE = re.compile("[\udc80-\udcff]")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Row:
    """A row of a file. `number` counts from 1, a header included; in JSON Lines it is the line's number."""

    file: str
    number: int
    value: JsonObject | str | BadRowError  # a text: JSON that nobody has parsed yet

    @property
    def place(self) -> str:
        """Where a person finds the row."""
        return f"{self.file}, row {self.number}"

    def parsed(self) -> JsonObject:
        """Return the fields of the row. Raises BadRowError when it has none."""
        if isinstance(self.value, BadRowError):
            raise self.value
        return _object(self.value) if isinstance(self.value, str) else self.value


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
    files = sorted(
        file for file in path.rglob("*") if file.is_file() and file.suffix in SUFFIXES and file.name not in BOOKKEEPING
    )
    if not files:
        raise TrainerError(Reason.DATA_UNAVAILABLE, f"{path}: holds no file with suffix {', '.join(SUFFIXES)}")
    return files


def read_rows(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of a file; `name` is what a person calls it.

    Raises:
        TrainerError: DATA_INVALID when the file is damaged so that no next row can be found.
    """
    if path.suffix in TABLES:
        yield from _table_rows(path, name)
        return
    with path.open("rb") as binary:
        if binary.read(2) in _UTF_16:
            raise TrainerError(Reason.DATA_INVALID, f"{name}: is UTF-16: save it as UTF-8")
    newline = "" if path.suffix == ".csv" else None
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as file:
        if path.suffix == ".csv":
            yield from _csv_rows(file, name)
        elif _first_character(file) == "[":
            yield from _array_rows(file, name)
        else:
            yield from _line_rows(file, name)


def _first_character(file: TextIO) -> str:
    while (character := file.read(1)).isspace():
        pass
    file.seek(0)
    return character


# --- JSON ------------------------------------------------------------------------------------------------------------


def _line_rows(file: TextIO, name: str) -> Iterator[Row]:
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and not line.endswith("\n"):
            _pass_over_line(file)
            reason = f"is longer than {LONGEST_LINE >> 20} million characters: leave it out"
            yield Row(name, number, BadRowError(reason, Defect.TOO_LARGE))
        elif not line.isspace():
            yield Row(name, number, line)


def _pass_over_line(file: TextIO) -> None:
    while (piece := file.readline(CHUNK_CHARACTERS)) and not piece.endswith("\n"):
        pass


def _object(text: str) -> JsonObject:
    check_utf8(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"is not JSON: {error}: mend the line, or remove it") from error
    if not isinstance(value, dict):
        raise BadRowError(f"is not a JSON object but {_kind(value)}")
    return value


def check_utf8(text: str) -> None:
    """Refuse a text in which bytes were found that are not UTF-8. Raises BadRowError with their place."""
    if not text.isascii() and (found := _FOREIGN_BYTE.search(text)):
        before = text[max(found.start() - 20, 0) : found.start()]
        raise BadRowError(
            f"is not UTF-8: byte 0x{ord(found[0]) - 0xDC00:02x} behind {before!r}: save the file as UTF-8",
            Defect.NOT_UTF8,
        )


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
            value, end = decoder.raw_decode(buffer, position)
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
        yield Row(name, number, _element(value, buffer[position:end]))
        position = end


def _element(value: object, text: str) -> JsonObject | BadRowError:
    try:
        check_utf8(text)
    except BadRowError as error:
        return error
    return value if isinstance(value, dict) else BadRowError(f"is {_kind(value)}, not a JSON object")


def _skip_separators(buffer: str, position: int) -> int:
    while position < len(buffer) and buffer[position] in " \t\r\n,":
        position += 1
    return position


# --- tables ----------------------------------------------------------------------------------------------------------


def _csv_rows(file: TextIO, name: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(file, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        number += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"is not CSV: {error}: put texts with quotes, commas or line breaks into double quotes"
            yield Row(name, number, BadRowError(problem))
            continue
        if header is None:
            header = _header(cells, name)
        elif cells:
            yield Row(name, number, _record(header, cells))


def _header(cells: list[str], name: str) -> list[str]:
    if not all(cells) or len(set(cells)) != len(cells):
        raise TrainerError(
            Reason.DATA_INVALID, f"{name}, row 1: expected a header that gives each column a name of its own: {cells}"
        )
    return cells


def _record(header: list[str], cells: list[str]) -> JsonObject | BadRowError:
    if len(cells) != len(header):
        return BadRowError(
            f"has {len(cells)} cells, but the header names {len(header)}: put texts with commas into double quotes"
        )
    try:
        check_utf8("".join(cells))
    except BadRowError as error:
        return error
    return dict(zip(header, cells, strict=True))


def _table_rows(path: Path, name: str) -> Iterator[Row]:
    # Imported late: brings pandas, which takes a second that other files do not need.
    from datasets import load_dataset

    kind = TABLES[path.suffix]
    options = {"batch_size": ROWS_AT_ONCE} if kind == "parquet" else {}
    try:
        table = load_dataset(kind, data_files=[str(path)], split="train", streaming=True, **options)
        for number, value in enumerate(table, start=1):
            yield Row(name, number, value)
    # pyarrow's errors are ValueErrors and OSErrors.
    except (OSError, ValueError) as error:
        raise TrainerError(
            Reason.DATA_INVALID, f"{name}: cannot be read as {kind.capitalize()}: {error}; write the file anew"
        ) from error


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), f"a {type(value).__name__}")
