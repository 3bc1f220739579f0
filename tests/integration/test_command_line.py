"""`kubectl finetune` against a real API server, with the operator and without nodes: whatever needs no running pod."""

import base64
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.command_line import CommandLine
from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl
from tests.integration.control_plane import ControlPlane
from tests.integration.kubelet import TRAIN, Kubelet, bring_to, wait_until_failed
from tests.integration.operator_process import OperatorProcess
from tests.terminal import Terminal
from tests.unit.operator.kubernetes_objects import ended, failure_message

pytestmark = pytest.mark.apiserver

TOKENS = {"HF_TOKEN": "hf_never_to_be_seen", "WANDB_API_KEY": "wandb_never_to_be_seen"}
# config.json of a model that the Hub has not to be asked for.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
}


@pytest.fixture(scope="module")
def kubectl_of_file(installed: Kubectl, operator: OperatorProcess) -> Kubectl:
    """kubectl of a cluster in which the operator runs."""
    return installed


@pytest.fixture
def namespace(kubectl_of_file: Kubectl) -> Kubectl:
    name = f"cli-{uuid.uuid4().hex[:8]}"
    kubectl_of_file.run("create", "namespace", name)
    return kubectl_of_file.within(name)


@pytest.fixture
def cli(plane: ControlPlane, namespace: Kubectl) -> CommandLine:
    return CommandLine(plane.admin_kubeconfig, namespace.namespace)


def write_job(directory: Path, name: str = "calls", **overrides: object) -> str:
    path = directory / "job.yaml"
    path.write_text(yaml.safe_dump(tiny_job(name, **overrides)))
    return str(path)


@contextmanager
def node(kubectl: Kubectl, name: str, gpus: int) -> Iterator[None]:
    """A node that is ready, for as long as the block lasts."""
    amounts = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    ready = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
    kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    kubectl.run("patch", "node", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": ready}))
    try:
        yield
    finally:
        kubectl.run("delete", "node", name)


# --- submit -----------------------------------------------------------------------------------------------------------


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


# --- plan -------------------------------------------------------------------------------------------------------------


def test_plan_tells_steps_memory_and_that_no_node_could_take_the_job(cli: CommandLine, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    job = write_job(tmp_path, compute={"nodes": 2, "gpusPerNode": 8})
    done = cli.run("plan", "-f", job, "--model-config", str(config), "--gpu", "H100", "--price", "2.5")
    assert done.exit_code == 1, done.stderr
    assert "at most 8: 4 epochs x 2, of 32 sequences (2 x 1 x 16)" in done.stdout
    assert "this cluster can never take them as they are" in done.stdout
    assert "Memory" in done.stdout


def test_plan_as_a_document_has_the_same_for_programs(cli: CommandLine, namespace: Kubectl, tmp_path: Path) -> None:
    job = write_job(tmp_path, compute={"nodes": 1, "gpusPerNode": 8})
    with node(namespace, "big", gpus=8):
        document = json.loads(cli.output("plan", "-f", job, "-o", "json"))
    assert (document["totalSteps"], document["worldSize"], document["exact"]) == (8, 8, False)
    (big,) = document["cluster"]["nodes"]
    assert (big["gpus"], big["freeGpus"], big["podsNow"]) == (8, 8, 1)
    assert document["cluster"]["fitsNow"] is True


def test_plan_takes_the_data_from_a_job_that_has_prepared_it(
    cli: CommandLine, namespace: Kubectl, tmp_path: Path
) -> None:
    bring_to(namespace, "before", "starting")
    with node(namespace, "small", gpus=0):
        document = json.loads(cli.output("plan", "-f", write_job(tmp_path, name="after"), "-o", "json"))
    assert (document["sequences"], document["tokens"], document["exact"]) == (100, 51_234, True)
    assert document["basis"] == "as job before found it"


def test_plan_needs_no_cluster(tmp_path: Path) -> None:
    nowhere = CommandLine(tmp_path / "no-kubeconfig")
    done = nowhere.run("plan", "-f", write_job(tmp_path), "--no-cluster")
    assert done.exit_code == 0, done.stderr
    assert "at most 8" in done.stdout
    assert "Planned without a cluster" in nowhere.run("plan", "-f", write_job(tmp_path)).stderr


# --- status, watch, logs, suspend, resume -----------------------------------------------------------------------------


def test_status_shows_jobs_as_a_table_and_one_of_them_whole(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "succeeded")
    table = cli.output("status").splitlines()
    assert table[0].split() == [
        "NAME",
        "PHASE",
        "STEP",
        "LOSS",
        "ETA",
        "GPUS",
        "GPU-HOURS",
        "RESTARTS",
        "AGE",
        "REASON",
    ]
    assert table[1].split()[:4] == ["calls", "Succeeded", "30/30", "2.250"]
    assert namespace.namespace in cli.output("status", "-A")
    whole = cli.output("status", "calls")
    assert "loss 5.500 -> 2.250 in 30 steps" in whole
    assert "sha256:00ff" in whole
    assert "\x1b" not in whole


def test_status_as_json_yaml_and_name_is_what_kubectl_would_print(cli: CommandLine, namespace: Kubectl) -> None:
    namespace.apply(tiny_job("calls", suspend=True))
    assert json.loads(cli.output("status", "calls", "-o", "json"))["metadata"]["name"] == "calls"
    listed = yaml.safe_load(cli.output("status", "-o", "yaml"))
    assert (listed["kind"], [item["metadata"]["name"] for item in listed["items"]]) == ("List", ["calls"])
    assert cli.output("status", "-o", "name") == "finetunejob.finetune.dev/calls\n"


def test_no_jobs_are_told_on_standard_error_and_are_no_error(cli: CommandLine) -> None:
    done = cli.run("status")
    assert (done.exit_code, done.stdout) == (0, "")
    assert f"No FineTuneJobs found in namespace {cli.namespace}." in done.stderr


def test_a_job_that_is_not_there_ends_with_4(cli: CommandLine) -> None:
    done = cli.run("status", "nobody")
    assert done.exit_code == 4
    assert '"nobody" not found' in done.stderr


def test_an_api_server_that_does_not_answer_ends_with_3(plane: ControlPlane, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(plane.admin_kubeconfig.read_text().replace(plane.url, "https://127.0.0.1:1"))
    done = CommandLine(kubeconfig).run("status")
    assert done.exit_code == 3
    assert "does not answer" in done.stderr


def test_a_user_without_rights_ends_with_5(plane: ControlPlane, namespace: Kubectl) -> None:
    """The operator's own credentials may not read Secrets or get single FineTuneJobs of a person."""
    done = CommandLine(plane.operator_kubeconfig, namespace.namespace).run("status", "calls")
    assert done.exit_code == 5
    assert "not permitted" in done.stderr


def test_an_unknown_option_ends_with_2(cli: CommandLine) -> None:
    assert cli.run("status", "--nonsense").exit_code == 2


def test_the_context_decides_where_its_namespace_is(plane: ControlPlane, namespace: Kubectl, tmp_path: Path) -> None:
    namespace.apply(tiny_job("calls", suspend=True))
    document = yaml.safe_load(plane.admin_kubeconfig.read_text())
    other = {"name": "other", "context": {"cluster": "test", "user": "test", "namespace": namespace.namespace}}
    document["contexts"].append(other)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(document))
    cli = CommandLine(Path("/nonexistent"))
    words = [*cli.words()[:3], "status", "-o", "name", "--kubeconfig", str(kubeconfig), "--context", "other"]
    done = subprocess.run(words, capture_output=True, text=True, env=cli.variables, check=True)
    assert done.stdout == "finetunejob.finetune.dev/calls\n"


def test_watch_without_a_terminal_prints_lines_and_ends_as_the_job_does(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "succeeded")
    done = cli.run("watch", "calls")
    assert done.exit_code == 0
    assert "Accepted: 2 x 1 CPU process." in done.stdout
    assert "Succeeded: loss 5.500 -> 2.250 in 30 steps." in done.stdout
    assert "\x1b" not in done.stdout


def test_watch_of_a_job_that_failed_ends_with_1_and_says_why(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "failed")
    done = cli.run("watch", "calls")
    assert done.exit_code == 1
    assert "Failed (Diverged): loss is NaN at step 3." in done.stdout


def test_watch_gives_up_after_its_timeout_and_leaves_the_job_alone(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "preparing")
    done = cli.run("watch", "calls", "--timeout", "1")
    assert done.exit_code == 124
    assert namespace.job("calls").phase in ("Preparing", "Pending")


def test_submit_and_watch_ends_as_the_job_does(cli: CommandLine, namespace: Kubectl, tmp_path: Path) -> None:
    words = cli.words("submit", "-f", write_job(tmp_path), "--watch")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=cli.variables) as watching:
        namespace.wait_until("the job is there", lambda: bool(namespace.items("finetunejobs")))
        kubelet = Kubelet(namespace, "calls")
        kubelet.prepare()
        pods = kubelet.pods(TRAIN, 2)
        kubelet.set_status(pods[1], ended(failure_message("Diverged", "loss is NaN at step 3"), exit_code=1))
        wait_until_failed(namespace, "calls")
        output, _ = watching.communicate(timeout=60)
    assert watching.returncode == 1
    assert "Failed (Diverged)" in output


def test_suspend_and_resume_change_the_job_once(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "preparing")
    assert cli.output("suspend", "calls", "--wait") == "finetunejob.finetune.dev/calls suspended\n"
    assert namespace.job("calls").phase == "Suspended"
    assert cli.output("suspend", "calls").endswith("suspended (unchanged)\n")
    assert cli.output("resume", "calls", "--wait").endswith("resumed\n")
    assert namespace.job("calls").body["spec"]["suspend"] is False


def test_a_job_that_has_ended_cannot_be_suspended(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "succeeded")
    done = cli.run("suspend", "calls")
    assert done.exit_code == 1
    assert "has ended (Succeeded)" in done.stderr


def test_logs_of_a_job_without_pods_say_why_there_are_none(cli: CommandLine, namespace: Kubectl) -> None:
    namespace.apply(tiny_job("calls", suspend=True))
    namespace.wait_for_job("calls", lambda job: job.phase == "Suspended", timeout_seconds=20)
    done = cli.run("logs", "calls")
    assert done.exit_code == 4
    assert "Set spec.suspend to false" in done.stderr


def test_logs_of_a_rank_that_the_job_does_not_have_name_those_that_it_has(cli: CommandLine, namespace: Kubectl) -> None:
    namespace.apply(tiny_job("calls", suspend=True))
    done = cli.run("logs", "calls", "--rank", "2")
    assert done.exit_code == 4
    assert "its ranks are 0 to 1" in done.stderr


def test_exec_where_nothing_runs_ends_with_4(cli: CommandLine, namespace: Kubectl) -> None:
    namespace.apply(tiny_job("calls", suspend=True))
    assert cli.run("exec", "calls", "--", "hostname").exit_code == 4


# --- doctor, retry, compare, cost, prune ------------------------------------------------------------------------------


def test_doctor_names_what_is_wrong_and_what_mends_it(cli: CommandLine, namespace: Kubectl) -> None:
    broken = tiny_job(
        "broken",
        compute={"nodes": 2, "gpusPerNode": 8},
        storage={"shared": {"size": "1Gi", "storageClassName": "no-such"}},
        secretName="none",
        tracking={"wandb": {"project": "p"}},
    )
    namespace.apply(broken)
    namespace.wait_for_job("broken", lambda job: job.phase == "Preparing", timeout_seconds=20)
    done = cli.run("doctor", "broken", "-o", "json")
    assert done.exit_code == 1
    problems = {finding["subject"]: finding for finding in json.loads(done.stdout) if finding["level"] == "problem"}
    assert set(problems) == {"secret", "storage", "nodes"}
    assert problems["secret"]["command"].startswith("kubectl create secret generic none")
    assert problems["storage"]["command"] == "kubectl get storageclass"


def test_a_retried_job_starts_anew_beside_the_old_one_and_both_are_compared(
    cli: CommandLine, namespace: Kubectl
) -> None:
    bring_to(namespace, "calls", "failed")
    done = cli.run("retry", "calls", "--from-step", "0")
    assert done.stdout == "finetunejob.finetune.dev/calls-retry-1 created (from the start of calls)\n", done.stderr
    new = namespace.wait_for_job("calls-retry-1", lambda job: job.phase == "Preparing", timeout_seconds=30)
    assert new.body["spec"]["storage"]["shared"] == {"claimName": "calls-shared"}
    assert new.body["spec"]["model"]["huggingFace"]["revision"] == "0123456789abcdef0123456789abcdef01234567"
    assert namespace.job("calls").phase == "Failed"
    compared = cli.output("compare", "calls", "calls-retry-1")
    assert "storage.shared.claimName" in compared
    assert cli.output("cost").splitlines()[-1].startswith("(all)")


def test_a_checkpoint_that_cannot_be_copied_in_time_leaves_no_job_behind(cli: CommandLine, namespace: Kubectl) -> None:
    bring_to(namespace, "calls", "failed")
    done = cli.run("retry", "calls", "--from-step", "4", "--timeout", "2")
    assert done.exit_code == 124
    assert [job["metadata"]["name"] for job in namespace.items("finetunejobs")] == ["calls"]
    assert not [job for job in namespace.items("jobs") if "adopt" in job["metadata"]["name"]]


# --- how it is printed ------------------------------------------------------------------------------------------------

PRINTING = {
    "status": ["status"],
    "status of one": ["status", "calls"],
    "submit": ["submit", "-f", "{job}", "--dry-run"],
    "plan": ["plan", "-f", "{job}"],
    "doctor": ["doctor", "calls", "--no-hub"],
    "compare": ["compare", "calls", "calls"],
    "cost": ["cost"],
    "watch": ["watch", "calls"],
    "an error": ["status", "nobody"],
}
COLOUR = re.compile(r"\x1b\[(?:\d+;)*[34]\d(?:;\d+)*m")


@pytest.fixture(scope="module")
def cli_beside_a_job(plane: ControlPlane, kubectl_of_file: Kubectl) -> CommandLine:
    """The command line in a namespace in which a job has succeeded."""
    kubectl_of_file.run("create", "namespace", "printed")
    bring_to(kubectl_of_file.within("printed"), "calls", "succeeded")
    return CommandLine(plane.admin_kubeconfig, "printed")


@pytest.mark.parametrize("command", PRINTING)
def test_nothing_that_is_piped_has_colours_even_where_the_terminal_could(
    cli_beside_a_job: CommandLine, tmp_path: Path, command: str
) -> None:
    words = [word.format(job=write_job(tmp_path, "new")) for word in PRINTING[command]]
    done = CommandLine(cli_beside_a_job.kubeconfig, "printed", {"TERM": "xterm-256color"}).run(*words)
    assert done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("words", [["status"], ["watch", "calls"], ["status", "nobody"]], ids=" ".join)
def test_a_terminal_has_colours_but_not_with_no_color(cli_beside_a_job: CommandLine, words: list[str]) -> None:
    written = {}
    for name, environment in (("as it is", {}), ("no colour", {"NO_COLOR": "1"})):
        with Terminal(cli_beside_a_job.words(*words), {**cli_beside_a_job.variables, **environment}) as terminal:
            terminal.wait(60)
        written[name] = terminal.raw.decode()
    assert COLOUR.search(written["as it is"])
    assert not COLOUR.search(written["no colour"])
    assert "Succeeded" in written["no colour"] or "not found" in written["no colour"]


@pytest.mark.parametrize("command", [name for name in PRINTING if name not in ("watch", "an error")])
def test_what_prints_prints_json_for_programs_too(cli_beside_a_job: CommandLine, tmp_path: Path, command: str) -> None:
    words = [word.format(job=write_job(tmp_path, "new")) for word in PRINTING[command]]
    done = cli_beside_a_job.run(*words, "-o", "json")
    assert json.loads(done.stdout)
    assert "calls" in done.stdout or "new" in done.stdout


# --- completion -------------------------------------------------------------------------------------------------------


def test_kubectl_completes_commands_options_and_the_names_of_jobs(cli: CommandLine, namespace: Kubectl) -> None:
    namespace.apply(tiny_job("calls", suspend=True), tiny_job("other", suspend=True))

    def propose(*words: str) -> list[str]:
        program = [sys.executable, "-m", "finetune_cli.completion", *words]
        return subprocess.run(program, capture_output=True, text=True, env=cli.variables, check=True).stdout.split()

    assert propose("wat") == ["watch", ":4"]
    assert propose("logs", "--fol") == ["--follow", ":4"]
    assert propose("watch", "-n", namespace.namespace, "") == ["calls", "other", ":4"]
    assert propose("submit", "-f", "") == [":0"]
