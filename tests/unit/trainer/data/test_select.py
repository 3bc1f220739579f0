"""Which files of a data set are read."""

import pytest

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.select import select_files
from finetune_trainer.errors import TrainerError

HERMES_CARD = """---
license: apache-2.0
configs:
- config_name: func_calling_singleturn
  data_files: func-calling-singleturn.json
- config_name: func_calling
  data_files:
  - func-calling.json
- config_name: both
  data_files:
  - split: train
    path: [data/train-*.parquet, more/**/*.jsonl]
  - split: test
    path: data/test-*.parquet
---
# Hermes
"""
HERMES_FILES = [
    "README.md",
    "func-calling-singleturn.json",
    "func-calling.json",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/test-00000-of-00001.parquet",
    "more/a.jsonl",
    "more/b/c.jsonl",
]
DEFAULT_CARD = """---
configs:
- config_name: default
  data_files: main.json
- config_name: other
  data_files: other.json
---
"""
FOLDER_CARD = """---
configs:
- config_name: one
  data_dir: folder
  data_files: "*.json"
---
"""

SELECTED: dict[str, tuple[list[str], str, str | None, str, list[str]]] = {
    "the one file of a subset": (HERMES_FILES, HERMES_CARD, "func_calling", "train", ["func-calling.json"]),
    "all files of a split, by patterns": (
        HERMES_FILES,
        HERMES_CARD,
        "both",
        "train",
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "more/a.jsonl", "more/b/c.jsonl"],
    ),
    "another split of a subset": (HERMES_FILES, HERMES_CARD, "both", "test", ["data/test-00000-of-00001.parquet"]),
    "the default when no subset is named": (["main.json", "other.json"], DEFAULT_CARD, None, "train", ["main.json"]),
    "the only subset when none is named, in its folder": (
        ["a.json", "folder/b.json"],
        FOLDER_CARD,
        None,
        "train",
        ["folder/b.json"],
    ),
    "the only file where there is no card": (["README.md", "rows.json"], "", None, "train", ["rows.json"]),
    "the file that is named like the subset": (
        ["func-calling.json", "other.json"],
        "",
        "func_calling",
        "train",
        ["func-calling.json"],
    ),
    "the folder that is named like the subset": (
        ["en/1.parquet", "en/2.parquet", "de/1.parquet"],
        "",
        "en",
        "train",
        ["en/1.parquet", "en/2.parquet"],
    ),
    "the files that are named after the split": (
        ["test.jsonl", "train-1.jsonl", "train-2.jsonl"],
        "",
        None,
        "train",
        ["train-1.jsonl", "train-2.jsonl"],
    ),
    "the file that is named after no other split": (
        ["rows.jsonl", "validation.jsonl"],
        "",
        None,
        "train",
        ["rows.jsonl"],
    ),
    "a split by its other name": (["data/dev.jsonl", "data/train.jsonl"], "", None, "validation", ["data/dev.jsonl"]),
    "files beside a card that is no YAML": (["rows.json"], "---\n{a: [\n---\n", None, "train", ["rows.json"]),
}


@pytest.mark.parametrize("case", SELECTED)
def test_what_is_read_is(case: str) -> None:
    files, card, subset, split, expected = SELECTED[case]
    assert select_files("team/rows", files, card, subset, split) == expected


REFUSED: dict[str, tuple[list[str], str, str | None, str, str]] = {
    "no subset named where there are several": (
        HERMES_FILES,
        HERMES_CARD,
        None,
        "train",
        "set `subset` to one of func_calling_singleturn, func_calling, both",
    ),
    "a subset that the card does not list": (
        HERMES_FILES,
        HERMES_CARD,
        "nothing",
        "train",
        "no subset 'nothing'; its card lists func_calling_singleturn, func_calling, both",
    ),
    "a split that the card does not list": (
        HERMES_FILES,
        HERMES_CARD,
        "both",
        "validation",
        "its card lists train, test",
    ),
    "a card that names a missing file": (
        ["README.md"],
        DEFAULT_CARD,
        None,
        "train",
        "names main.json, but no such file",
    ),
    "no data file at all": (["README.md", "rows.txt"], "", None, "train", "holds no file with suffix .jsonl"),
    "a subset that no file is named after": (
        ["a.json", "b.json"],
        "",
        "c",
        "train",
        "no file is named 'c': there are a.json, b.json",
    ),
    "several files and no subset": (
        ["a.json", "b.json"],
        "",
        None,
        "train",
        "has several files; set `subset` to the name of one: a.json, b.json",
    ),
    "a split that no file is named after": (["rows.json"], "", None, "test", "no file is named after split 'test'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_ambiguous_or_empty_choice_is_refused_with_what_there_is(case: str) -> None:
    files, card, subset, split, reason = REFUSED[case]
    with pytest.raises(TrainerError) as error:
        select_files("team/rows", files, card, subset, split)
    assert error.value.reason is Reason.DATA_UNAVAILABLE
    assert error.value.message.startswith("team/rows: ")
    assert reason in error.value.message
