"""What is installed is what was pinned: every package with one version and its digests, and no other index."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path("requirements").glob("*.txt"))


def entries(path: Path) -> list[str]:
    """Return the requirements of a file, each with its options on one line."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_requirement_is_pinned_to_a_version_and_to_digests(path: Path) -> None:
    assert entries(path)
    for entry in entries(path):
        assert re.match(r"^[A-Za-z0-9][A-Za-z0-9._-]*==[^\s*]+( *;[^-]+)? +--hash=sha256:[0-9a-f]{64}", entry), entry


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_an_index_or_a_package_from_elsewhere(path: Path) -> None:
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host|https?://|git\+", path.read_text())


def test_the_images_install_nothing_that_is_not_among_what_the_tests_run_with() -> None:
    tested = {entry.split()[0] for entry in entries(Path("requirements/dev.txt"))}
    for name in ("operator", "trainer"):
        assert {entry.split()[0] for entry in entries(Path(f"requirements/{name}.txt"))} <= tested


@pytest.fixture(scope="module")
def bills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bills of materials as a person makes them, with the environment in which the tests run."""
    directory = tmp_path_factory.mktemp("sbom")
    make = ["make", "--silent", "sbom", f"SBOM={directory}", f"VENV={sys.prefix}", "--assume-old=venv"]
    subprocess.run(make, check=True, capture_output=True)
    return directory


@pytest.mark.parametrize("image", ["operator", "trainer"])
def test_the_bill_of_materials_names_each_pinned_package_with_its_version_and_digests(bills: Path, image: str) -> None:
    components = json.loads((bills / f"{image}.cdx.json").read_text(encoding="utf-8"))["components"]
    pinned = {entry.split()[0].lower() for entry in entries(Path(f"requirements/{image}.txt"))}
    assert {f"{one['name']}=={one['version']}".lower() for one in components} == pinned
    assert all(reference["hashes"] for one in components for reference in one["externalReferences"])
