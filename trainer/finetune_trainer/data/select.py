"""Which files of a data set's repository are read.

The card of a data set (README.md) may list configurations with the files of each split
(https://huggingface.co/docs/hub/datasets-manual-configuration); without a list, the names of the files have to do.
"""

import re
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

import yaml

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.read import SUFFIXES
from finetune_trainer.errors import TrainerError

CARD_FILE = "README.md"
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_SPLIT_WORDS = {
    "train": ("train",),
    "test": ("test", "eval"),
    "validation": ("validation", "valid", "val", "dev"),
}


def select_files(repository: str, files: list[str], card: str, subset: str | None, split: str) -> list[str]:
    """Return the files of a subset and a split, in the order of their names.

    Args:
        repository: what a person calls the data set.
        files: all files of it.
        card: text of its README.md, empty when there is none.
        subset: configuration that was asked for, or None.
        split: split that was asked for.

    Raises:
        TrainerError: DATA_UNAVAILABLE when nothing matches or too much does; the message lists what there is.
    """
    readable = sorted(name for name in files if PurePosixPath(name).suffix in SUFFIXES)
    configurations = _configurations(card)
    if configurations:
        return _select_by_card(repository, readable, configurations, subset, split)
    return _select_by_name(repository, readable, subset, split)


def _configurations(card: str) -> list[dict[str, Any]]:
    matter = _FRONT_MATTER.match(card)
    try:
        document = yaml.safe_load(matter[1]) if matter else None
    except yaml.YAMLError:
        return []
    configurations = document.get("configs") if isinstance(document, dict) else None
    if not isinstance(configurations, list):
        return []
    return [entry for entry in configurations if isinstance(entry, dict) and entry.get("data_files")]


def _select_by_card(
    repository: str, files: list[str], configurations: list[dict[str, Any]], subset: str | None, split: str
) -> list[str]:
    names = [str(entry.get("config_name", "default")) for entry in configurations]
    if subset is None:
        defaults = [entry for entry in configurations if entry.get("default") or entry.get("config_name") == "default"]
        chosen = configurations if len(configurations) == 1 else defaults[:1]
        if not chosen:
            raise _unavailable(f"{repository}: has several subsets; set `subset` to one of {', '.join(names)}")
    else:
        chosen = [entry for entry in configurations if str(entry.get("config_name", "default")) == subset]
        if not chosen:
            raise _unavailable(f"{repository}: has no subset {subset!r}; its card lists {', '.join(names)}")
    patterns = _patterns_by_split(chosen[0]["data_files"])
    if split not in patterns:
        raise _unavailable(f"{repository}: has no split {split!r}; its card lists {', '.join(patterns)}")
    folder = str(chosen[0].get("data_dir", "")).strip("/")
    wanted = [f"{folder}/{pattern}" if folder else pattern for pattern in patterns[split]]
    selected = [name for name in files if any(_matches(name, pattern) for pattern in wanted)]
    if not selected:
        raise _unavailable(
            f"{repository}: its card names {', '.join(wanted)}, but no such file with suffix {', '.join(SUFFIXES)}"
        )
    return selected


def _patterns_by_split(data_files: Any) -> dict[str, list[str]]:
    """Bring the notations of a card into one: a pattern, a list of patterns, or a list of splits with theirs."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    patterns: dict[str, list[str]] = {}
    for entry in entries:
        split, paths = ("train", entry) if isinstance(entry, str) else (str(entry.get("split")), entry.get("path", []))
        patterns.setdefault(split, []).extend([paths] if isinstance(paths, str) else paths)
    return patterns


def _matches(name: str, pattern: str) -> bool:
    # `**` means any number of folders, none included; fnmatch's `*` crosses folders anyway.
    return fnmatch(name, pattern) or fnmatch(name, pattern.replace("**/", ""))


def _select_by_name(repository: str, files: list[str], subset: str | None, split: str) -> list[str]:
    if not files:
        raise _unavailable(f"{repository}: holds no file with suffix {', '.join(SUFFIXES)}")
    if subset is not None:
        wanted = _plain(subset)
        selected = [
            name for name in files if wanted in map(_plain, (*PurePosixPath(name).parts, PurePosixPath(name).stem))
        ]
        if not selected:
            raise _unavailable(
                f"{repository}: its card lists no subsets, and no file is named {subset!r}: there are {_some(files)}"
            )
        files = selected
    others = {word for name, words in _SPLIT_WORDS.items() if name != split for word in words}
    of_split = [name for name in files if _words(name) & {split, *_SPLIT_WORDS.get(split, ())}]
    selected = of_split or [name for name in files if not _words(name) & others]
    if not selected or (split != "train" and not of_split):
        raise _unavailable(f"{repository}: no file is named after split {split!r}: there are {_some(files)}")
    if subset is None and not of_split and len({PurePosixPath(name).stem for name in selected}) > 1:
        raise _unavailable(f"{repository}: has several files; set `subset` to the name of one: {_some(selected)}")
    return selected


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower()))


def _some(files: list[str]) -> str:
    return ", ".join(files[:10]) + (f" and {len(files) - 10} more" if len(files) > 10 else "")


def _unavailable(message: str) -> TrainerError:
    return TrainerError(Reason.DATA_UNAVAILABLE, message)
