"""An image's tag says what it was made of; the sandbox image is what containerd can import."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from dev.cluster import image_build
from dev.cluster.image_build import Image, take_sources
from dev.cluster.tiny_image import TINY_IMAGE, tiny_image_archive
from dev.cluster.training_operator import image_reference, training_operator_archive

IMAGE = Image("finetune-operator", "operator/Dockerfile", ("operator/finetune_operator", "pyproject.toml"))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "repository"
    for name in ("operator/Dockerfile", "operator/finetune_operator/plan.py", "pyproject.toml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name}\n")
    monkeypatch.setattr(image_build, "REPOSITORY", root)
    monkeypatch.setattr(image_build, "CONTEXT", tmp_path / "context")
    monkeypatch.setattr(image_build, "IMAGES", (IMAGE,))
    return root


def tag() -> str:
    take_sources()
    return IMAGE.tag()


CHANGES = {
    "a source file is edited": ("operator/finetune_operator/plan.py", "edited"),
    "a source file is added": ("operator/finetune_operator/decide.py", "new"),
    "the Dockerfile is edited": ("operator/Dockerfile", "FROM other"),
    "the requirements are edited": ("pyproject.toml", "[project]"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_tag_changes_when(change: str, repository: Path) -> None:
    before = tag()
    name, content = CHANGES[change]
    (repository / name).write_text(content)

    assert tag() != before


UNIMPORTANT = {
    "byte code is written": "operator/finetune_operator/__pycache__/plan.cpython-311.pyc",
    "a file that is not in the image is added": "operator/NOTES.md",
}


@pytest.mark.parametrize("change", UNIMPORTANT)
def test_the_tag_stays_when(change: str, repository: Path) -> None:
    before = tag()
    path = repository / UNIMPORTANT[change]
    path.parent.mkdir(exist_ok=True)
    path.write_text("anything")

    assert tag() == before


def test_an_edit_during_the_build_belongs_to_the_next_one(repository: Path) -> None:
    building = tag()
    (repository / "operator/finetune_operator/plan.py").write_text("edited meanwhile")

    assert IMAGE.tag() == building


def test_a_renamed_file_is_another_image(repository: Path) -> None:
    before = tag()
    (repository / "operator/finetune_operator/plan.py").rename(repository / "operator/finetune_operator/plans.py")

    assert tag() != before


def unpacked(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        return {member.name: (files.extractfile(member) or io.BytesIO()).read() for member in files}


def test_the_sandbox_image_is_a_docker_archive_that_runs_busybox() -> None:
    archive = unpacked(tiny_image_archive(b"\x7fELF busybox"))
    [manifest] = json.loads(archive["manifest.json"])
    [layer] = [archive[name] for name in manifest["Layers"]]
    config = json.loads(archive[manifest["Config"]])

    assert manifest["RepoTags"] == [TINY_IMAGE] == ["localhost:5000/finetune-cluster-tiny:1"]
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    with tarfile.open(fileobj=io.BytesIO(layer)) as files:
        assert files.getmember("bin/busybox").mode == 0o755
        assert files.getmember("bin/sh").linkname == "busybox"


def test_the_same_busybox_makes_the_same_sandbox_image() -> None:
    assert tiny_image_archive(b"busybox") == tiny_image_archive(b"busybox")


def test_the_training_operators_image_is_its_program_under_the_name_that_its_manifests_start() -> None:
    archive = unpacked(training_operator_archive(b"\x7fELF manager"))
    [manifest] = json.loads(archive["manifest.json"])
    [layer] = [archive[name] for name in manifest["Layers"]]

    assert manifest["RepoTags"] == [image_reference()]
    assert image_reference().startswith("localhost:5000/training-operator:v1.9.4-")
    assert unpacked(layer) == {"manager": b"\x7fELF manager"}
    with tarfile.open(fileobj=io.BytesIO(layer)) as files:
        assert files.getmember("manager").mode == 0o755
