"""`submit`: the job, its Secret, and what is refused."""

import base64
import json
from pathlib import Path

import pytest
import yaml

from tests.command_line import CommandLine
from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl
from tests.integration.command_line.job_files import write_job

pytestmark = pytest.mark.apiserver

TOKENS = {"HF_TOKEN": "hf_never_to_be_seen", "WANDB_API_KEY": "wandb_never_to_be_seen"}


def test_submit_makes_the_job_and_its_secret_and_prints_no_token(
    cli: CommandLine, namespace: Kubectl, tmp_path: Path
) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in TOKENS.items()))
    job = write_job(tmp_path, secretName="fine-tuning-tokens")
    done = cli.run("submit", "-f", job, "--env-file", str(env_file))
    assert (done.exit_code, done.stdout) == (0, "finetunejob.finetune.dev/calls created\n")
    assert "secret/fine-tuning-tokens created (HF_TOKEN, WANDB_API_KEY)" in done.stderr
    assert not any(token in done.stdout + done.stderr for token in TOKENS.values())
    data = namespace.get("secret", "fine-tuning-tokens")["data"]
    assert {name: base64.b64decode(value).decode() for name, value in data.items()} == TOKENS
    body = json.dumps(namespace.job("calls").body)
    assert not any(token in body for token in TOKENS.values())


def test_submit_again_says_unchanged_and_a_new_token_keeps_the_other_keys(
    cli: CommandLine, namespace: Kubectl, tmp_path: Path
) -> None:
    namespace.run("create", "secret", "generic", "mine", "--from-literal=HF_TOKEN=old", "--from-literal=other=kept")
    job = write_job(tmp_path, secretName="mine", suspend=True)
    assert cli.output("submit", "-f", job).endswith("created\n")
    env_file = tmp_path / ".env"
    env_file.write_text("HF_TOKEN=new\n")
    done = cli.run("submit", "-f", job, "--env-file", str(env_file))
    assert done.stdout.endswith("unchanged\n")
    assert "secret/mine configured (HF_TOKEN)" in done.stderr
    data = namespace.get("secret", "mine")["data"]
    assert {name: base64.b64decode(value).decode() for name, value in data.items()} == {
        "HF_TOKEN": "new",
        "other": "kept",
    }


def test_tokens_need_a_secret_that_the_job_names(cli: CommandLine, namespace: Kubectl, tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("HF_TOKEN=abc\n")
    done = cli.run("submit", "-f", write_job(tmp_path), "--env-file", str(env_file))
    assert done.exit_code == 2
    assert "spec.secretName" in done.stderr
    assert namespace.items("finetunejobs") == []


def test_a_dry_run_keeps_nothing(cli: CommandLine, namespace: Kubectl, tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("HF_TOKEN=abc\n")
    job = write_job(tmp_path, secretName="mine")
    assert cli.output("submit", "-f", job, "--dry-run", "--env-file", str(env_file)).endswith(
        "created (server dry run)\n"
    )
    assert namespace.items("finetunejobs") == []
    assert namespace.items("secrets") == []


def test_a_wrong_file_is_refused_before_the_cluster_is_asked(cli: CommandLine, tmp_path: Path) -> None:
    done = cli.run("submit", "-f", write_job(tmp_path, lora__rnk=8))
    assert done.exit_code == 2
    assert "spec.lora.rnk: is not a known field" in done.stderr


def test_a_change_that_the_api_server_refuses_ends_with_1_and_its_words(
    cli: CommandLine, namespace: Kubectl, tmp_path: Path
) -> None:
    cli.output("submit", "-f", write_job(tmp_path))
    namespace.wait_for_job("calls", lambda job: job.condition("Accepted")["status"] == "True", timeout_seconds=20)
    done = cli.run("submit", "-f", write_job(tmp_path, lora__rank=16))
    assert done.exit_code == 1
    assert "cannot be changed after the job was accepted" in done.stderr


def test_a_job_is_read_from_standard_input_too(cli: CommandLine, namespace: Kubectl) -> None:
    text = yaml.safe_dump(tiny_job("piped"))
    assert cli.output("submit", "-f", "-", "-o", "name", stdin=text) == "finetunejob.finetune.dev/piped\n"
    assert namespace.job("piped").body["metadata"]["name"] == "piped"
