"""`make test` runs every test, although it reads for each kind of them the folder alone in which they stand."""

from pathlib import Path

import pytest

FOLDERS = {"apiserver": "tests/integration", "kueue": "tests/integration", "e2e": "tests/e2e"}
# What is asked for of each kind; together it is all of that kind.
SELECTIONS = {"apiserver": ["apiserver"], "kueue": ["kueue"], "e2e": ['"e2e and not beside"', '"e2e and beside"']}


@pytest.mark.parametrize("kind", FOLDERS)
def test_tests_that_need_a_cluster_stand_where_make_looks_for_them(kind: str) -> None:
    makefile = Path("Makefile").read_text(encoding="utf-8")
    for selection in SELECTIONS[kind]:
        assert f"-m {selection} {FOLDERS[kind]}\n" in makefile
    marked = [path for path in Path("tests").rglob("*.py") if f"mark.{kind}" in path.read_text(encoding="utf-8")]
    assert marked
    assert [path for path in marked if Path(FOLDERS[kind]) not in path.parents] == []
