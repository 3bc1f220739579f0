"""`init` as a person meets it: questions in a terminal, defaults on Enter."""

from pathlib import Path

import yaml

from tests.command_line import PROGRAM, CommandLine
from tests.terminal import Terminal


def test_questions_are_answered_by_typing_or_by_enter(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    variables = CommandLine(tmp_path / "no-cluster").variables
    with Terminal([*PROGRAM, "init", str(file), "--nodes", "2"], variables) as terminal:
        for question, answer in (
            ("Name of the job", "support"),
            ("Base model", "Qwen/Qwen2.5-7B-Instruct"),
            ("Data, a repository", "path:data/calls.jsonl"),
            ("Format of its rows", "openai"),
            ("GPUs of each node", "8"),
            ("Storage class", ""),
            ("Size of the shared", ""),
            ("Secret with HF_TOKEN", ""),
        ):
            terminal.wait_for(lambda text, question=question: question in text, question, 60)
            terminal.press(f"{answer}\n".encode())
        assert terminal.wait(60) == 0, terminal.text()
    spec = yaml.safe_load(file.read_text())["spec"]
    assert spec["model"] == {"huggingFace": {"repository": "Qwen/Qwen2.5-7B-Instruct"}}
    assert spec["datasets"] == [{"path": "data/calls.jsonl", "format": "openai"}]
    assert spec["compute"] == {"nodes": 2, "gpusPerNode": 8}
    assert spec["storage"] == {"shared": {"size": "500Gi"}}
    assert spec["secretName"] == "fine-tuning-tokens"


def test_a_question_that_was_answered_wrongly_ends_with_2_and_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    variables = CommandLine(tmp_path / "no-cluster").variables
    with Terminal([*PROGRAM, "init", str(file), "--name", "Not A Name", "--model", "a/b"], variables) as terminal:
        for _ in range(7):
            terminal.press(b"\n")
        assert terminal.wait(60) == 2, terminal.text()
        assert "metadata.name" in terminal.text()
    assert not file.exists()
