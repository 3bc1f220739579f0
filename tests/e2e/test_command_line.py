"""`kubectl finetune` on a real cluster: a job that is looked at while it trains, and one from submit to prune.

The live commands run in a pseudo-terminal whose screen is read. Whoever runs them has the ClusterRole `edit` in one
namespace and nothing else, but where nodes and the operator are looked at.
"""

import base64
import hashlib
import json
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from dev.cluster.image_build import TRAINER
from tests.command_line import CommandLine, Finished
from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import JobView, Kubectl
from tests.terminal import Terminal
from tests.users import user_with_role

pytestmark = [pytest.mark.e2e, pytest.mark.beside]

NAME = "calls"
TOKEN = "hf_never_to_be_seen"
STEPS, CHECKPOINT_STEPS, RETRIED_STEP = 16, 4, 12
SLOW = 240.0  # seconds that a cold, busy machine may take for a stage


@dataclass(frozen=True)
class Live:
    """What was seen of a job that trains for longer than anybody looks, until it was suspended and resumed."""

    screen: str
    interrupted: int
    job: JobView
    hostnames: Finished
    hostnames_as_json: Finished
    gpus: Finished
    tail: str
    log_of_rank_1: str
    too_early: Finished
    suspended: Finished
    resumed: Finished
    phase_after: str


@dataclass(frozen=True)
class Story:
    """What was seen of a short job from its file to its end, and its cluster for what comes after."""

    cli: CommandLine
    kubectl: Kubectl
    job: JobView
    planned: Finished
    screen: str
    """What `submit --watch` left on it."""
    exit_code: int
    terminal_bytes: bytes
    followed_log: str
    """What `logs -f` wrote into a file."""
    followed_screen: str
    followed_bytes: bytes
    """The same in a terminal."""


@pytest.fixture(scope="module")
def cli(module_namespace: Kubectl, hub_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    kubeconfig = user_with_role(module_namespace, "edit", tmp_path_factory.mktemp("edit"))
    return CommandLine(kubeconfig, module_namespace.namespace, {"HF_ENDPOINT": hub_endpoint})


@pytest.fixture(scope="module")
def administrator(module_namespace: Kubectl, hub_endpoint: str) -> CommandLine:
    return CommandLine(module_namespace.kubeconfig, module_namespace.namespace, {"HF_ENDPOINT": hub_endpoint})


@pytest.fixture(scope="module")
def live(cli: CommandLine, module_namespace: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Live:
    kubectl, name = module_namespace, "live"
    kubectl.apply(tiny_job(name, training__epochs=1000, training__maxStepsPerEpoch=10, checkpoint={"everySteps": 1000}))
    kubectl.wait_for_job(name, lambda job: job.step >= 2, timeout_seconds=SLOW)
    with Terminal(cli.words("watch", name), cli.variables) as terminal:
        screen = terminal.wait_for(lambda text: "loss  " in text and "RANK" in text, "a curve and the pods", 120)
        terminal.process.send_signal(signal.SIGINT)
        interrupted = terminal.wait(30)
    seen = Live(
        screen=screen,
        interrupted=interrupted,
        job=kubectl.job(name),
        hostnames=cli.run("exec", name, "--", "hostname"),
        hostnames_as_json=cli.run("exec", name, "-o", "json", "--", "hostname"),
        gpus=cli.run("exec", name),
        tail=cli.output("logs", name, "--tail", "1"),
        log_of_rank_1=cli.output("logs", name, "--rank", "1"),
        too_early=cli.run("download", name, str(tmp_path_factory.mktemp("early") / "adapter")),
        suspended=cli.run("suspend", name, "--wait", timeout_seconds=SLOW),
        resumed=cli.run("resume", name, "--wait", timeout_seconds=SLOW),
        phase_after=kubectl.job(name).phase,
    )
    kubectl.run("delete", "finetunejob", name, timeout_seconds=SLOW)
    kubectl.wait_until("its pods are gone", lambda: not kubectl.items("pods", f"finetune.dev/job={name}"), SLOW)
    return seen


@pytest.fixture(scope="module")
def story(
    cli: CommandLine,
    administrator: CommandLine,
    live: Live,
    module_namespace: Kubectl,
    tmp_path_factory: pytest.TempPathFactory,
) -> Story:
    """After `live`, because two gangs at once would make each other slow."""
    kubectl, directory = module_namespace, tmp_path_factory.mktemp("story")
    file, env_file, log_file = directory / "job.yaml", directory / ".env", directory / "log"
    spec = {"training__epochs": 4, "training__maxStepsPerEpoch": 4, "checkpoint": {"everySteps": CHECKPOINT_STEPS}}
    file.write_text(yaml.safe_dump(tiny_job(NAME, secretName="tokens", **spec)))
    env_file.write_text(f"HF_TOKEN={TOKEN}\n")
    planned = administrator.run("plan", "-f", str(file))
    submit = cli.words("submit", "-f", str(file), "--env-file", str(env_file), "--watch")
    with Terminal(submit, cli.variables) as submitting:
        kubectl.wait_until("it is submitted", lambda: NAME in _job_names(kubectl))
        with (
            log_file.open("w") as log,
            Terminal(cli.words("logs", NAME, "--follow"), cli.variables) as following,
            subprocess.Popen(cli.words("logs", NAME, "--follow"), stdout=log, env=cli.variables) as piped,
        ):
            job = kubectl.wait_for_job(NAME, lambda job: job.phase == "Succeeded", timeout_seconds=SLOW)
            code = submitting.wait(60)
            assert following.wait(60) == piped.wait(timeout=60) == 0
    return Story(
        cli=cli,
        kubectl=kubectl,
        job=job,
        planned=planned,
        screen=submitting.text(),
        exit_code=code,
        terminal_bytes=submitting.raw,
        followed_log=log_file.read_text(),
        followed_screen=following.text(),
        followed_bytes=following.raw,
    )


# --- before and while it runs -----------------------------------------------------------------------------------------


def test_what_init_writes_is_taken_by_the_cluster(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    words = [*cli.words()[:3], "init", str(file), "--yes", "--nodes", "2", "--gpus", "8"]
    subprocess.run(words, env=cli.variables, timeout=60, check=True)
    taken = cli.run("submit", "-f", str(file), "--dry-run")
    assert taken.stdout == "finetunejob.finetune.dev/function-calling created (server dry run)\n", taken.stderr


def test_plan_reads_the_models_shape_from_the_hub_and_finds_room_on_both_nodes(story: Story) -> None:
    assert story.planned.exit_code == 0, story.planned.stderr
    assert f"at most {STEPS}: 4 epochs x 4, of 4 sequences (2 x 1 x 2)" in story.planned.stdout
    assert "Memory" in story.planned.stdout
    assert "2 pods: would start now" in story.planned.stdout


def test_submit_puts_the_token_into_the_secret_and_nowhere_else(story: Story) -> None:
    written = story.terminal_bytes.decode()
    assert f"finetunejob.finetune.dev/{NAME} created" in written
    assert "secret/tokens created (HF_TOKEN)" in written
    assert story.kubectl.get("secret", "tokens")["data"] == {"HF_TOKEN": base64.b64encode(TOKEN.encode()).decode()}
    told = [written, json.dumps(story.job.body), story.followed_log, story.followed_bytes.decode()]
    assert not any(TOKEN in text for text in told)


def test_watch_draws_steps_the_loss_and_every_pod_with_its_node(live: Live) -> None:
    lines = live.screen.splitlines()
    assert any(line.startswith("live   Running") for line in lines), live.screen
    assert any(line.startswith("step  ") and "/10000" in line for line in lines)
    assert any(line.startswith("loss  ") and "█" in line for line in lines)
    pods = [line.split() for line in lines if re.match(r"\d+ +live-a1-", line)]
    assert [pod[0] for pod in pods] == ["0", "1"]
    assert {pod[3] for pod in pods} == {"Running"}
    assert any("Prepared" in line for line in lines)


def test_submit_and_watch_ends_with_the_jobs_outcome_and_leaves_it_on_the_screen(story: Story) -> None:
    assert story.exit_code == 0
    assert f"{STEPS}/{STEPS}" in story.screen
    assert "Succeeded: loss" in story.screen
    assert b"\x1b[" in story.terminal_bytes


def test_ctrl_c_ends_the_watching_with_130_and_not_the_job(live: Live) -> None:
    assert live.interrupted == 130
    assert live.job.phase == "Running"


def test_suspend_waits_until_no_pod_is_left(live: Live) -> None:
    assert (live.suspended.exit_code, live.suspended.stdout) == (0, "finetunejob.finetune.dev/live suspended\n")
    assert "No pod of the job is left" in live.suspended.stderr


def test_resume_waits_until_the_job_goes_on(live: Live) -> None:
    assert (live.resumed.exit_code, live.resumed.stdout) == (0, "finetunejob.finetune.dev/live resumed\n")
    assert live.phase_after in ("Pending", "Starting", "Restarting", "Running")


def test_logs_follow_all_stages_and_ranks_with_their_prefixes_and_without_colours(story: Story) -> None:
    prefixes = {line.partition(" | ")[0].strip() for line in story.followed_log.splitlines()}
    assert {"rank 0", "rank 1"} <= prefixes
    assert any(
        line.startswith("rank 0 ") and f"step {STEPS}/{STEPS}" in line for line in story.followed_log.splitlines()
    )
    assert "\x1b" not in story.followed_log


def test_logs_follow_in_a_terminal_with_a_colour_for_each_rank_until_the_job_has_ended(story: Story) -> None:
    assert f"step {STEPS}/{STEPS}" in story.followed_screen
    assert any(line.startswith("rank 0 ") and " | " in line for line in story.followed_screen.splitlines())
    assert b"\x1b[3" in story.followed_bytes


def test_the_tail_is_one_line_of_each_rank(live: Live) -> None:
    assert len(live.tail.splitlines()) <= 2
    assert live.tail.splitlines()[0].startswith("rank 0 | ")


def test_one_rank_is_the_log_of_its_pod_alone(live: Live) -> None:
    assert {line.partition(" | ")[0] for line in live.log_of_rank_1.splitlines()} <= {"rank 1"}


def test_exec_asks_every_node_and_puts_the_answers_into_one_table(live: Live) -> None:
    assert live.hostnames.exit_code == 0, live.hostnames.stderr
    head, *rows = [line.split() for line in live.hostnames.stdout.splitlines()]
    assert head == ["RANK", "NODE", "EXIT", "OUTPUT"]
    assert [(row[0], row[2]) for row in rows] == [("0", "0"), ("1", "0")]
    assert [row[3].startswith("live-a1-") for row in rows] == [True, True]
    assert len({row[1] for row in rows}) == 2
    answers = json.loads(live.hostnames_as_json.stdout)
    assert [(answer["exitCode"], answer["output"].startswith("live-a1-")) for answer in answers] == [(0, True)] * 2


def test_exec_without_a_command_asks_nvidia_smi_and_says_where_there_is_none(live: Live) -> None:
    assert live.gpus.exit_code == 1
    assert "nvidia-smi" in live.gpus.stdout
    assert [line.split()[0] for line in live.gpus.stdout.splitlines()] == ["RANK", "0", "1"]


def test_there_is_nothing_to_download_before_the_end(live: Live) -> None:
    assert live.too_early.exit_code == 4
    assert "has no result yet" in live.too_early.stderr


# --- after it ---------------------------------------------------------------------------------------------------------


def test_status_tells_all_jobs_and_one_of_them_whole(story: Story) -> None:
    rows = [line.split() for line in story.cli.output("status").splitlines()]
    assert [row[:3] for row in rows if row[0] == NAME] == [[NAME, "Succeeded", f"{STEPS}/{STEPS}"]]
    assert story.job.status["result"]["adapterDigest"] in story.cli.output("status", NAME)


def test_download_brings_an_adapter_whose_digest_is_the_one_that_the_job_tells(story: Story, tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    done = story.cli.run("download", NAME, str(target), timeout_seconds=SLOW)
    assert (done.exit_code, done.stdout) == (0, f"{target}\n"), done.stderr
    weights = target / "adapter_model.safetensors"
    digest = f"sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"
    assert digest == story.job.status["result"]["adapterDigest"]
    with safe_open(weights, framework="pt") as adapter:
        assert any("lora_A" in name for name in adapter.keys())  # noqa: SIM118 - it is no dict
    assert json.loads((target / "adapter_config.json").read_text())["r"] == 8
    story.kubectl.wait_until("the pod that read is gone", lambda: not _readers(story.kubectl))


def test_a_directory_that_is_there_is_not_overwritten(story: Story, tmp_path: Path) -> None:
    done = story.cli.run("download", NAME, str(tmp_path))
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_retry_goes_on_from_the_checkpoint_of_the_old_job_in_a_new_one(story: Story) -> None:
    done = story.cli.run("retry", NAME, "--from-step", str(RETRIED_STEP), "--watch", timeout_seconds=SLOW)
    assert done.exit_code == 0, done.stderr + done.stdout
    assert f"finetunejob.finetune.dev/{NAME}-retry-1 created (from step {RETRIED_STEP} of {NAME})" in done.stdout
    new = story.kubectl.job(f"{NAME}-retry-1")
    assert new.status["attempts"][0]["resumedFromStep"] == RETRIED_STEP
    assert new.status["result"]["steps"] == STEPS
    assert new.status["result"]["adapterDigest"] == story.job.status["result"]["adapterDigest"]
    assert story.kubectl.job(NAME).status == story.job.status


def test_retry_from_a_step_without_a_checkpoint_names_those_there_are_and_leaves_nothing(story: Story) -> None:
    done = story.cli.run("retry", NAME, "--from-step", "3", "--name", "vain", timeout_seconds=SLOW)
    assert done.exit_code == 1
    assert f"there are those of steps {RETRIED_STEP}, {STEPS}" in done.stderr
    story.kubectl.wait_until("no job is left", lambda: "vain" not in _job_names(story.kubectl))


def test_compare_shows_where_two_recipes_differ_and_what_came_of_them(story: Story) -> None:
    text = story.cli.output("compare", NAME, f"{NAME}-retry-1")
    rows = {line.split("   ")[0]: line for line in text.splitlines()}
    assert "storage.shared.claimName" in rows
    assert "lora.rank" not in rows
    final = f"{story.job.status['result']['finalLoss']:.4f}"
    assert rows["final loss"].split()[-2:] == [final, final]


def test_cost_adds_up_what_the_processes_used(story: Story) -> None:
    (document,) = json.loads(story.cli.output("cost", NAME, "-o", "json"))
    ledger = story.job.status["accounting"]
    assert document["gpuSeconds"]["productive"] == ledger["productiveGpuSeconds"] > 0
    table = story.cli.output("cost").splitlines()
    assert table[-1].startswith("(all)")


def test_doctor_finds_nothing_wrong_with_a_job_that_succeeded(story: Story, administrator: CommandLine) -> None:
    for cli, operator in ((administrator, "finetune-system/finetune-operator is ready"), (story.cli, "has looked")):
        done = cli.run("doctor", NAME)
        assert done.exit_code == 0, done.stdout
        assert operator in done.stdout
        assert "tokens has HF_TOKEN" in done.stdout


def test_doctor_finds_everything_that_is_wrong_and_how_to_mend_it(story: Story, administrator: CommandLine) -> None:
    broken = tiny_job(
        "broken",
        compute={"nodes": 2, "gpusPerNode": 8},
        storage={"shared": {"size": "1Gi", "storageClassName": "no-such"}},
        model={"huggingFace": {"repository": "finetune-operator/tiny-random-llama-gated"}},
        secretName="none",
        tracking={"wandb": {"project": "p"}},
    )
    story.kubectl.apply(broken)
    try:
        done = administrator.run("doctor", "broken", "-o", "json")
        assert done.exit_code == 1
        problems = {finding["subject"]: finding for finding in json.loads(done.stdout) if finding["level"] == "problem"}
        assert problems["secret"]["message"] == "Secret none does not exist"
        assert problems["secret"]["command"].startswith("kubectl create secret generic none")
        assert "tiny-random-llama-gated is gated" in problems["hub"]["message"]
        assert problems["storage"]["command"] == "kubectl get storageclass"
        assert "nvidia.com/gpu" in problems["nodes"]["message"]
    finally:
        story.kubectl.run("delete", "finetunejob", "broken", "--wait=false")


def test_the_same_file_trains_on_this_machine_without_a_cluster(hub_endpoint: str, tmp_path: Path) -> None:
    job = tiny_job("laptop", training__epochs=1, training__maxStepsPerEpoch=2, compute={"device": "cpu"})
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    cli = CommandLine(tmp_path / "no-cluster", environment={"HF_ENDPOINT": hub_endpoint})
    words = [*cli.words()[:3], "local", "-f", str(file), "--shared", str(tmp_path / "shared")]
    done = subprocess.run(words, capture_output=True, text=True, env=cli.variables, timeout=SLOW, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    directory = Path(done.stdout.splitlines()[-1])
    assert (directory / "adapter" / "adapter_model.safetensors").exists()
    assert "step 2/2" in done.stdout


def test_prune_keeps_what_a_job_names_and_removes_it_when_the_job_is_gone(story: Story) -> None:
    claim = f"{NAME}-shared"
    listed = json.loads(story.cli.output("prune", "--claim", claim, "-o", "json", timeout_seconds=SLOW))
    assert {entry["fate"] for entry in listed} == {"kept"}
    assert any(entry["path"] == story.job.status["plan"]["modelPath"] for entry in listed)
    for name in _job_names(story.kubectl):
        story.kubectl.run("delete", "finetunejob", name, timeout_seconds=SLOW)
    story.kubectl.wait_until("all is gone", lambda: not story.kubectl.items("jobs,pods", "finetune.dev/job"), SLOW)
    unknown = story.cli.run(
        "prune", "--claim", claim
    )  # no job is left to tell the image, nor may `edit` ask the operator
    assert (unknown.exit_code, "name it with --image" in unknown.stderr) == (2, True)
    words = ("prune", "--claim", claim, "--image", TRAINER.reference())
    dry = story.cli.run(*words, timeout_seconds=SLOW)
    assert dry.exit_code == 0, dry.stderr
    assert "unused" in dry.stdout
    assert "Nothing was removed" in dry.stderr
    removed = story.cli.output(*words, "--yes", timeout_seconds=SLOW)
    assert f"{len(listed)} entries removed" in removed
    assert "The cache is empty." in story.cli.output(*words, timeout_seconds=SLOW)
    story.kubectl.wait_until("its Jobs are gone", lambda: not story.kubectl.items("jobs"), 60)


def _readers(kubectl: Kubectl) -> list[str]:
    return [pod["metadata"]["name"] for pod in kubectl.items("pods", "app.kubernetes.io/name=kubectl-finetune")]


def _job_names(kubectl: Kubectl) -> list[str]:
    return [job["metadata"]["name"] for job in kubectl.items("finetunejobs")]
