"""Rows out of files, each with the place where a person finds it."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data import read
from finetune_trainer.data.conversation import BadRowError
from finetune_trainer.data.read import find_files, read_rows
from finetune_trainer.errors import TrainerError

ROWS = [{"id": 1}, {"id": 2, "text": "größer\n]"}, {"id": 3}]


def written(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def values(path: Path) -> list[object]:
    return [row.value for row in read_rows(path, path.name)]


SPELLINGS = {
    "JSON Lines": ("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
    "JSON Lines named .json": ("rows.json", "\n".join(json.dumps(row) for row in ROWS)),
    "JSON Lines with a byte order mark, Windows line ends and empty lines": (
        "rows.ndjson",
        "\ufeff" + "\r\n\r\n".join(json.dumps(row) for row in ROWS),
    ),
    "a JSON array": ("rows.json", json.dumps(ROWS)),
    "an indented JSON array with a byte order mark": ("rows.json", "\ufeff \n" + json.dumps(ROWS, indent=2) + "\n"),
    "a JSON array named .jsonl": ("rows.jsonl", json.dumps(ROWS)),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_rows_are_read_in_order(case: str, tmp_path: Path) -> None:
    assert values(written(tmp_path, *SPELLINGS[case])) == ROWS


def test_rows_are_read_from_parquet(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_pylist([{"id": 1, "turns": [{"from": "human"}]}, {"id": 2, "turns": []}]), tmp_path / "a.parquet"
    )
    assert values(tmp_path / "a.parquet") == [{"id": 1, "turns": [{"from": "human"}]}, {"id": 2, "turns": []}]


def test_an_array_is_read_a_piece_at_a_time_also_where_a_row_is_longer_than_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "CHUNK_CHARACTERS", 7)
    rows = [{"id": number, "text": "x" * (number * 13)} for number in range(20)]
    assert values(written(tmp_path, "rows.json", json.dumps(rows, indent=1))) == rows


def test_a_malformed_line_is_named_and_the_next_one_read(tmp_path: Path) -> None:
    rows = list(
        read_rows(written(tmp_path, "rows.jsonl", '{"id": 1}\n{"id": \n\n[4]\n{"id": 5}\n'), "team/calls/rows.jsonl")
    )
    assert [row.place for row in rows] == [f"team/calls/rows.jsonl, row {number}" for number in (1, 2, 4, 5)]
    assert [type(row.value) for row in rows] == [dict, BadRowError, BadRowError, dict]
    assert "is not JSON" in str(rows[1].value)
    assert str(rows[2].value) == "is not a JSON object but a list"


def test_an_element_of_an_array_that_is_no_object_is_named_and_the_next_one_read(tmp_path: Path) -> None:
    rows = list(read_rows(written(tmp_path, "rows.json", '[{"id": 1}, "two", {"id": 3}]'), "rows.json"))
    assert [row.number for row in rows] == [1, 2, 3]
    assert str(rows[1].value) == "is a text, not a JSON object"


BROKEN = {
    "an array that ends in the middle of a row": ("rows.json", '[{"id": 1}, {"id": 2', "rows.json, row 2: is not JSON"),
    "an array with a comma missing inside a row": (
        "rows.json",
        '[{"id": 1}, {"a": 1 "b": 2}]',
        "rows.json, row 2: is not JSON",
    ),
    "an array with a row that nests too deep": (
        "rows.json",
        '[{"id": 1}, {"a": ' + "[" * 100_000,
        "rows.json, row 2: nests too deep",
    ),
    "a file that is no Parquet": ("rows.parquet", "PAR2", "rows.parquet: cannot be read as Parquet"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_in_which_no_next_row_can_be_found_is_refused_with_the_row(case: str, tmp_path: Path) -> None:
    name, text, reason = BROKEN[case]
    with pytest.raises(TrainerError) as error:
        values(written(tmp_path, name, text))
    assert error.value.reason is Reason.DATA_INVALID
    assert reason in error.value.message


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "gr\xf6\xdfer"}\n')
    with pytest.raises(TrainerError, match="is not UTF-8"):
        values(tmp_path / "rows.jsonl")


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert values(written(tmp_path, "rows.jsonl", " \n")) == []
    assert values(written(tmp_path, "rows.json", "[]")) == []


def test_a_directory_is_all_its_data_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.jsonl", "a.parquet", "b/1.json", "README.md", "LICENSE"):
        written(tmp_path, name, "")
    assert [str(file.relative_to(tmp_path)) for file in find_files(tmp_path)] == ["a.parquet", "b/1.json", "b/2.jsonl"]


def test_a_path_without_data_is_refused_with_what_is_expected_there(tmp_path: Path) -> None:
    for path in (tmp_path, written(tmp_path, "rows.csv", "a,b"), tmp_path / "missing.jsonl"):
        with pytest.raises(TrainerError) as error:
            find_files(path)
        assert error.value.reason is Reason.DATA_UNAVAILABLE
        assert str(path) in error.value.message
