"""`make test` runs every test, although it reads for each kind of them the folder alone in which they stand."""

from pathlib import Path

import pytest

FOLDERS = {"apiserver": "tests/integration", "kueue": "tests/integration", "e2e": "tests/e2e"}


@pytest.mark.parametrize("kind", FOLDERS)
def test_tests_that_need_a_cluster_stand_where_make_looks_for_them(kind: str) -> None:
    assert f"-m {kind} {FOLDERS[kind]}\n" in Path("Makefile").read_text(encoding="utf-8")
    marked = [path for path in Path("tests").rglob("*.py") if f"mark.{kind}" in path.read_text(encoding="utf-8")]
    assert marked
    assert [path for path in marked if Path(FOLDERS[kind]) not in path.parents] == []
