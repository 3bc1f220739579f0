"""Rows out of files, each with the place where a person finds it."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data import read
from finetune_trainer.data.conversation import BadRowError, Defect
from finetune_trainer.data.read import Row, find_files, read_rows
from finetune_trainer.errors import TrainerError

ROWS = [{"id": 1}, {"id": 2, "text": "größer\n]"}, {"id": 3}]


def written(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def values(path: Path) -> list[object]:
    return [row.parsed() for row in read_rows(path, path.name)]


def refusal(row: Row) -> BadRowError | None:
    try:
        row.parsed()
    except BadRowError as error:
        return error
    return None


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
    problems = [refusal(row) for row in rows]
    assert [problem is None for problem in problems] == [True, False, False, True]
    assert str(problems[1]).startswith("is not JSON: Expecting value: line 2 column 1")
    assert str(problems[2]) == "is not a JSON object but a list"


def test_an_element_of_an_array_that_is_no_object_is_named_and_the_next_one_read(tmp_path: Path) -> None:
    rows = list(read_rows(written(tmp_path, "rows.json", '[{"id": 1}, "two", {"id": 3}]'), "rows.json"))
    assert [row.number for row in rows] == [1, 2, 3]
    assert str(refusal(rows[1])) == "is a text, not a JSON object"


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


LATIN_1 = {
    "JSON Lines": ("rows.jsonl", '{"id": 1}\n{"text": "größer"}\n{"id": 3}\n', 2),
    "a JSON array": ("rows.json", '[{"id": 1}, {"text": "größer"}, {"id": 3}]', 2),
    "CSV": ("rows.csv", "id,text\n1,a\n2,größer\n3,b\n", 3),
}


@pytest.mark.parametrize("case", LATIN_1)
def test_a_row_that_is_not_utf8_is_named_with_the_byte_and_the_next_one_read(case: str, tmp_path: Path) -> None:
    name, text, number = LATIN_1[case]
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    rows = list(read_rows(tmp_path / name, name))
    bad = {row.place: refusal(row) for row in rows if refusal(row)}
    [(place, problem)] = bad.items()
    assert len(rows) == 3
    assert place == f"{name}, row {number}"
    assert problem is not None
    assert problem.defect is Defect.NOT_UTF8
    assert "is not UTF-8: byte 0xf6 behind" in str(problem)
    assert str(problem).endswith("gr': save the file as UTF-8")


def test_half_of_a_character_that_is_written_as_json_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    assert values(written(tmp_path, "rows.jsonl", '{"text": "\\udcf6 größer"}\n')) == [{"text": "\udcf6 größer"}]


def test_a_file_in_utf16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": 1}\n', encoding="utf-16")
    with pytest.raises(TrainerError, match=r"rows\.jsonl: is UTF-16: save it as UTF-8"):
        values(tmp_path / "rows.jsonl")


def test_a_line_that_would_fill_the_memory_is_passed_over_and_the_next_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "LONGEST_LINE", 100)
    monkeypatch.setattr(read, "CHUNK_CHARACTERS", 7)
    text = "".join(json.dumps({"text": "x" * size}) + "\n" for size in (10, 300, 11))
    rows = list(read_rows(written(tmp_path, "rows.jsonl", text), "rows.jsonl"))
    assert [row.number for row in rows] == [1, 2, 3]
    problem = refusal(rows[1])
    assert problem is not None
    assert problem.defect is Defect.TOO_LARGE
    assert [len(rows[index].parsed()["text"]) for index in (0, 2)] == [10, 11]


def test_csv_cells_are_the_texts_that_they_are(tmp_path: Path) -> None:
    text = 'instruction,input,output\n"Say ""hi"",\nnow",NA,1\n,null,\n'
    assert values(written(tmp_path, "rows.csv", text)) == [
        {"instruction": 'Say "hi",\nnow', "input": "NA", "output": "1"},
        {"instruction": "", "input": "null", "output": ""},
    ]


def test_a_csv_row_with_a_cell_too_many_is_named_and_the_next_one_read(tmp_path: Path) -> None:
    rows = list(read_rows(written(tmp_path, "rows.csv", "a,b\n1,2,3\n4,5\n6\n"), "rows.csv"))
    assert [row.number for row in rows] == [2, 3, 4]
    assert str(refusal(rows[0])) == ("has 3 cells, but the header names 2: put texts with commas into double quotes")
    assert rows[1].parsed() == {"a": "4", "b": "5"}
    assert str(refusal(rows[2])).startswith("has 1 cells, but the header names 2")


def test_a_csv_row_with_a_stray_quote_is_named_and_the_next_one_read(tmp_path: Path) -> None:
    rows = list(read_rows(written(tmp_path, "rows.csv", 'a,b\n"x"y,2\n4,5\n'), "rows.csv"))
    assert str(refusal(rows[0])).startswith("is not CSV")
    assert rows[1].parsed() == {"a": "4", "b": "5"}


@pytest.mark.parametrize("header", ["a,,b", "a,a"])
def test_a_csv_file_without_a_header_is_refused(header: str, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"rows\.csv, row 1: expected a header"):
        values(written(tmp_path, "rows.csv", f"{header}\n1,2,3\n"))


def test_a_directory_that_datasets_has_saved_is_read(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi"}]}, {"messages": []}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    [file] = find_files(tmp_path / "saved")
    assert file.suffix == ".arrow"
    assert values(file) == rows


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert values(written(tmp_path, "rows.jsonl", " \n")) == []
    assert values(written(tmp_path, "rows.json", "[]")) == []


def test_a_directory_is_all_its_data_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.jsonl", "a.parquet", "b/1.json", "README.md", "LICENSE"):
        written(tmp_path, name, "")
    assert [str(file.relative_to(tmp_path)) for file in find_files(tmp_path)] == ["a.parquet", "b/1.json", "b/2.jsonl"]


def test_a_path_without_data_is_refused_with_what_is_expected_there(tmp_path: Path) -> None:
    for path in (tmp_path, written(tmp_path, "rows.txt", "a,b"), tmp_path / "missing.jsonl"):
        with pytest.raises(TrainerError) as error:
            find_files(path)
        assert error.value.reason is Reason.DATA_UNAVAILABLE
        assert str(path) in error.value.message
