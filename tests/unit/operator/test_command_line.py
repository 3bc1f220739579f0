"""`python -m finetune_operator render FILE` and `crd`, as a person types them."""

import io
from pathlib import Path

import pytest
import yaml

from finetune_operator.__main__ import main
from tests.factories import manifest

FOLDER = Path(__file__).resolve().parents[3] / "manifests" / "samples"


def test_render_prints_the_plan_and_every_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(FOLDER / "function-calling-demo.yaml")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# FineTuneJob default/function-calling-demo: 2 nodes x 1 processes\n# - Claim ")
    kinds = [document["kind"] for document in yaml.safe_load_all(text)]
    prepare, train, evaluate = ["Job"], ["Service", "Job", "Job"], ["Job"]
    assert kinds == ["PersistentVolumeClaim", "PersistentVolumeClaim", "ConfigMap", *prepare, *train, *evaluate]


def test_render_reads_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(yaml.safe_dump(manifest())))
    assert main(["render", "-"]) == 0
    assert "name: calls-prepare" in capsys.readouterr().out


def test_render_takes_the_settings_of_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "mirror.example/trainer:7")
    assert main(["render", str(FOLDER / "one-gpu.yaml")]) == 0
    assert "image: mirror.example/trainer:7" in capsys.readouterr().out


def test_render_names_every_problem_on_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(manifest({"lora": {"rank": 0}, "compute": {"nodes": 0}})), encoding="utf-8")
    assert main(["render", str(path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "spec.lora.rank: must be greater than or equal to 1",
        "spec.compute.nodes: must be greater than or equal to 1",
    ]


UNREADABLE = {
    "text that is no YAML": ("a: [", "is not one YAML document"),
    "a list": ("- 1", "metadata is missing"),
    "another kind": ("{apiVersion: v1, kind: Pod, metadata: {name: x}}", "expected apiVersion: finetune.dev/v1alpha1"),
    "two documents": ("a: 1\n---\nb: 2", "is not one YAML document"),
}


@pytest.mark.parametrize(("text", "words"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_render_says_why_it_cannot_read_a_file(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    assert main(["render", str(path)]) == 1
    assert words in capsys.readouterr().err


def test_a_file_that_is_no_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(b"\xff\xfe\x00")
    assert main(["render", str(path)]) == 1
    assert capsys.readouterr().err == f"{path}: is no UTF-8 text\n"


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "no-such.yaml"]) == 1
    assert capsys.readouterr().err == "no-such.yaml: cannot be read: No such file or directory\n"


def test_the_operator_does_not_start_without_its_image(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FINETUNE_TRAINER_IMAGE", raising=False)
    assert main(["run"]) == 1
    assert capsys.readouterr().err == "FINETUNE_TRAINER_IMAGE: is not set; name the image that trains\n"


def test_crd_prints_the_committed_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crd"]) == 0
    committed = (FOLDER.parents[1] / "crds" / "finetunejobs.yaml").read_text(encoding="utf-8")
    assert capsys.readouterr().out == committed
