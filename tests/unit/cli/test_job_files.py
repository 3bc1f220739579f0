"""Files that a person hands over, and the file that `init` writes."""

from pathlib import Path

import pytest
import yaml

from finetune_cli.commands.init import filled
from finetune_cli.errors import CommandError, ExitCode
from finetune_cli.job_file import namespace_of, parse_job_text, read_job_file
from finetune_cli.secrets import read_tokens
from finetune_cli.template import job_text
from tests.factories import manifest


def test_what_init_writes_without_any_answer_is_a_job() -> None:
    _, job = parse_job_text(job_text(filled({})), "default")
    assert job.spec.model.hugging_face is not None
    assert job.spec.model.hugging_face.repository == "meta-llama/Llama-3.1-8B-Instruct"
    assert job.spec.compute.world_size == 1
    assert job.spec.secret_name == "fine-tuning-tokens"


def test_every_answer_reaches_the_file() -> None:
    answers = {
        "name": "support",
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "dataset": "path:data/calls.jsonl",
        "format": "openai",
        "nodes": 2,
        "gpus_per_node": 8,
        "storage_class": "fast-rwx",
        "size": "2Ti",
        "secret_name": "mine",
    }
    from finetune_trainer.contract.dataset import DatasetFormat

    _, job = parse_job_text(job_text(filled(answers | {"format": DatasetFormat.OPENAI})), "answers")
    spec = job.spec
    assert (job.metadata.name, spec.compute.nodes, spec.compute.gpus_per_node) == ("support", 2, 8)
    assert (spec.datasets[0].path, str(spec.datasets[0].format)) == ("data/calls.jsonl", "openai")
    assert (spec.storage.shared.size, spec.storage.shared.storage_class_name) == ("2Ti", "fast-rwx")
    assert spec.secret_name == "mine"


def test_a_data_set_of_ones_own_has_no_subset_of_another() -> None:
    _, job = parse_job_text(job_text(filled({"dataset": "team/calls"})), "own")
    assert job.spec.datasets[0].hugging_face is not None
    assert job.spec.datasets[0].hugging_face.subset is None


def test_no_gpu_is_training_on_processors() -> None:
    _, job = parse_job_text(job_text(filled({"gpus_per_node": 0})), "cpu")
    assert (str(job.spec.compute.device), job.spec.compute.processes_per_node) == ("cpu", 1)


def test_every_problem_of_a_file_is_named_with_its_field(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(manifest({"lora": {"rnk": 8}, "compute": {"nodes": 0}})))
    with pytest.raises(CommandError) as failure:
        read_job_file(path)
    assert failure.value.code is ExitCode.USAGE
    assert "spec.lora.rnk: is not a known field" in failure.value.message
    assert "spec.compute.nodes:" in failure.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not YAML"),
        ("", "has 0 documents"),
        ("kind: A\n---\nkind: B\n", "has 2 documents"),
        ("kind: FineTuneJob\n", "metadata is missing"),
        ("metadata: {name: x}\nkind: Pod\n", "is no FineTuneJob"),
    ],
)
def test_what_is_no_job_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(CommandError, match=words):
        parse_job_text(text, "file")


def test_a_file_and_a_command_line_that_name_two_namespaces_are_refused() -> None:
    with pytest.raises(CommandError, match="the file says namespace team-a and the command line other"):
        namespace_of(manifest(), "other")
    assert namespace_of(manifest(), None) == "team-a"
    assert namespace_of(manifest(), "team-a") == "team-a"


def test_tokens_are_read_from_a_file_and_other_names_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nexport HF_TOKEN='hf_abc'\nWANDB_API_KEY=k$ey \nAWS_SECRET=never\n")
    assert read_tokens(path) == {"HF_TOKEN": "hf_abc", "WANDB_API_KEY": "k$ey"}


@pytest.mark.parametrize("content", ["", "OTHER=1\n", "HF_TOKEN=\n"])
def test_a_file_without_tokens_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / ".env"
    path.write_text(content)
    with pytest.raises(CommandError, match="has neither of HF_TOKEN and WANDB_API_KEY"):
        read_tokens(path)
