"""`pytest tests/golden --golden-update` rewrites the files; read the difference before you commit it."""

from pathlib import Path
from typing import Protocol

import pytest

FOLDER = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-update", action="store_true", help="rewrite the golden files")


class Golden(Protocol):
    def __call__(self, name: str, text: str) -> None: ...


@pytest.fixture
def matches_golden(request: pytest.FixtureRequest) -> Golden:
    """Compares a text with the golden file of a name, or writes it."""

    # NB: the option is known only where this folder is named on the command line.
    update = bool(request.config.getoption("--golden-update", default=False))

    def compare(name: str, text: str) -> None:
        path = FOLDER / f"{name}.yaml"
        if update:
            path.write_text(text, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} differs: run `make golden` and read the difference"
        )

    return compare
