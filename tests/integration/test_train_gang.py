"""Training in two processes, with every sharding; then as pods do it: an agent a node, scraped, and stopped."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from safetensors.torch import load_file

from finetune_trainer.contract import series
from finetune_trainer.contract.job import TrainerJob, write_job
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import Reason, TerminationMessage, read_termination
from tests.tiny_run import prepare_tiny_job, train_in_gang, train_in_process

pytestmark = pytest.mark.gang

DEADLINE_SECONDS = 100

# Sharding and processes of a node, for a gang of two processes.
GANGS = {
    "replicate": ("replicate", 2),
    "full": ("full", 2),
    "hybrid on one node": ("hybrid", 2),
    "hybrid on two nodes": ("hybrid", 1),
}


@dataclass(frozen=True)
class Finished:
    """What a run left behind."""

    losses: list[float]
    adapter: dict[str, torch.Tensor]


def read_run(paths: JobPaths) -> Finished:
    lines = (paths.logs / "metrics.jsonl").read_text().splitlines()
    return Finished(
        [json.loads(line)["loss"] for line in lines], load_file(paths.adapter / "adapter_model.safetensors")
    )


def prepare(
    root: Path, accumulation: int, compute: dict[str, Any], **groups: dict[str, Any]
) -> tuple[TrainerJob, JobPaths]:
    training = {
        "epochs": 2,
        "batchSize": 1,
        "gradientAccumulation": accumulation,
        "maxSequenceLength": 32,
        "optimizer": {"learningRate": 0.01},
        "schedule": {"warmupSteps": 1},
    }
    # Dropout and packing are on: both have to come out the same wherever a sequence is computed.
    lora = {"rank": 4, "alpha": 8, "dropout": 0.1}
    return prepare_tiny_job(root, training=training, lora=lora, compute={"device": "cpu"} | compute, **groups)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of one process."""
    root = tmp_path_factory.mktemp("alone")
    job, paths = prepare(root, 8, {})
    train_in_process(0, 1, root / "store", [(job, paths, 1)])
    return read_run(paths)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """The same run in two processes, once for each sharding."""
    runs = {}
    for name, (sharding, per_node) in GANGS.items():
        root = tmp_path_factory.mktemp("together")
        compute = {"sharding": sharding, "nodes": 2 // per_node, "processesPerNode": per_node}
        runs[name] = (*prepare(root, 4, compute), per_node)
    store = tmp_path_factory.mktemp("store") / "store"
    train_in_gang(2, store, list(runs.values()))
    return {name: read_run(paths) for name, (_, paths, _) in runs.items()}


@pytest.mark.parametrize("gang", GANGS)
def test_two_processes_have_the_loss_curve_of_one(alone: Finished, together: dict[str, Finished], gang: str) -> None:
    assert len(alone.losses) == 4
    assert together[gang].losses == pytest.approx(alone.losses, rel=1e-6)


@pytest.mark.parametrize("gang", GANGS)
def test_two_processes_train_the_adapter_of_one(alone: Finished, together: dict[str, Finished], gang: str) -> None:
    adapter = together[gang].adapter
    assert adapter.keys() == alone.adapter.keys()
    for name, expected in alone.adapter.items():
        # AdamW's first steps have the learning rate as their size whatever the gradient, also where it is almost zero.
        torch.testing.assert_close(adapter[name], expected, rtol=1e-3, atol=1e-4)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port)).close()
    except OSError:
        return False
    return True


class Node:
    """One pod of a gang: a process group of its own, with the environment that the operator gives it."""

    def __init__(
        self,
        rank: int,
        num_nodes: int,
        job: TrainerJob,
        paths: JobPaths,
        port: int,
        root: Path,
        master: str = "localhost",
    ) -> None:
        self.metrics_port = free_port()
        self.termination_log = root / f"termination-{rank}"
        self.termination_log.unlink(missing_ok=True)
        job_file = root / f"job-{rank}.yaml"
        job_file.write_text(write_job(job))
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PET_NNODES": str(num_nodes),
            "PET_NPROC_PER_NODE": "1",
            "PET_MASTER_ADDR": master,
            "PET_MASTER_PORT": str(port),
            "JOB_COMPLETION_INDEX": str(rank),
            "FINETUNE_METRICS_PORT": str(self.metrics_port),
        }
        flags = ["--shared", paths.shared, "--network", paths.network, "--termination-log", self.termination_log]
        command = [sys.executable, "-m", "finetune_trainer", "train", job_file, *flags]
        self.output = root / f"output-{rank}"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self) -> TerminationMessage:
        """Wait for the end and return the last word."""
        self.process.wait(DEADLINE_SECONDS)
        message = read_termination(self.termination_log.read_text()) if self.termination_log.exists() else None
        assert message is not None, self.output.read_text()
        return message

    def kill(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def waited_seconds(self) -> float:
        """What this node's process has waited for slower ones, as Prometheus sees it."""
        return sum(
            sample.value
            for sample in self.samples()
            if sample.name == series.STEP_PHASE_SECONDS_TOTAL and sample.labels["phase"] == "wait"
        )

    def scrape(self) -> dict[str, float]:
        return {sample.name: sample.value for sample in self.samples()}

    def samples(self) -> list[Sample]:
        url = f"http://127.0.0.1:{self.metrics_port}{series.METRICS_PATH}"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                text = response.read().decode()
        except OSError:
            return []
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def wait_for(condition: Callable[[], bool], nodes: list[Node]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        ended = [node.output.read_text() for node in nodes if node.process.poll() is not None]
        assert not ended, ended
        assert time.monotonic() < deadline, [node.output.read_text() for node in nodes]
        time.sleep(0.2)


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start_gang(job: TrainerJob, paths: JobPaths, root: Path, cleanup: ExitStack) -> list[Node]:
    """Start the nodes in the wrong order, as a cluster may."""
    num_nodes, port = job.spec.compute.nodes, free_port()
    nodes = []
    for rank in reversed(range(num_nodes)):
        nodes.append(Node(rank, num_nodes, job, paths, port, root))
        cleanup.callback(nodes[-1].kill)
    return nodes[::-1]


def test_a_gang_of_two_nodes_is_scraped_while_it_trains_and_leaves_a_checkpoint_when_one_is_asked_to_stop(
    tmp_path: Path, cleanup: ExitStack
) -> None:
    job, paths = prepare_tiny_job(
        tmp_path,
        training={"epochs": 1000, "gradientAccumulation": 4, "batchSize": 1, "maxSequenceLength": 32},
        compute={"device": "cpu", "nodes": 2, "sharding": "full"},
        checkpoint={"everySteps": 5},
    )
    leader, worker = start_gang(job, paths, tmp_path, cleanup)
    wait_for(lambda: leader.scrape().get(series.CHECKPOINT_LAST_STEP, 0) >= 5, [leader, worker])
    scraped = leader.scrape()
    assert scraped[series.STEPS_TOTAL] == 2000
    assert scraped[series.STEP] >= 5
    assert series.NETWORK_TRANSMIT_BYTES_TOTAL in worker.scrape()

    worker.process.send_signal(signal.SIGTERM)
    asked, with_it = worker.end(), leader.end()
    assert (asked.reason, with_it.reason) == (Reason.TERMINATED, Reason.TERMINATED), leader.output.read_text()
    assert asked.progress is None
    assert with_it.progress is not None
    assert with_it.progress.checkpoint is not None
    step = with_it.progress.step
    assert with_it.message == f"asked to stop: {step} of 2000 steps are done, and will not have to be done again"
    assert (asked.step, with_it.step, with_it.progress.checkpoint.step) == (step, step, step)
    assert (paths.shared / with_it.progress.checkpoint.path / "manifest.json").is_file()


def test_the_node_that_keeps_the_others_waiting_is_the_one_that_waits_least(tmp_path: Path, cleanup: ExitStack) -> None:
    job, paths = prepare_tiny_job(tmp_path, training={"epochs": 1000}, compute={"device": "cpu", "nodes": 2})
    leader, worker = start_gang(job, paths, tmp_path, cleanup)
    wait_for(lambda: leader.scrape().get(series.STEP, 0) >= 2, [leader, worker])
    before = [node.waited_seconds() for node in (leader, worker)]

    def waited() -> list[float]:
        return [node.waited_seconds() - then for node, then in zip((leader, worker), before, strict=True)]

    def hold_up_the_worker() -> bool:
        # In short stops, most of the time: a long one that finds it waiting would count as waiting of its own.
        for _ in range(20):
            os.killpg(worker.process.pid, signal.SIGSTOP)
            time.sleep(0.05)
            os.killpg(worker.process.pid, signal.SIGCONT)
            time.sleep(0.01)
        return waited()[0] > 3

    wait_for(hold_up_the_worker, [leader, worker])
    of_leader, of_worker = waited()
    assert of_worker < of_leader / 2


def test_a_gang_that_loses_a_node_tells_so_and_how_far_it_was(tmp_path: Path, cleanup: ExitStack) -> None:
    job, paths = prepare_tiny_job(
        tmp_path, training={"epochs": 1000}, compute={"device": "cpu", "nodes": 2}, checkpoint={"everySteps": 5}
    )
    leader, worker = start_gang(job, paths, tmp_path, cleanup)
    wait_for(lambda: leader.scrape().get(series.CHECKPOINT_LAST_STEP, 0) >= 5, [leader, worker])
    worker.kill()
    bereft = leader.end()
    assert (bereft.reason, bereft.rank) == (Reason.COLLECTIVE_FAILED, 0)
    assert "another process was lost" in bereft.message
    assert bereft.progress is not None
    assert bereft.progress.step >= 5
    assert bereft.progress.checkpoint is not None
    assert bereft.progress.checkpoint.step >= 5


def test_a_run_on_a_laptop_ends_with_a_report(tmp_path: Path, cleanup: ExitStack) -> None:
    job, paths = prepare_tiny_job(tmp_path)
    (node,) = start_gang(job, paths, tmp_path, cleanup)
    message = node.end()
    assert message.reason is Reason.SUCCEEDED, node.output.read_text()
    assert message.trained is not None
    assert message.trained.steps == 6
    assert message.trained.adapter_path == "jobs/default/tiny/local/adapter"
    assert (paths.shared / message.trained.adapter_path / "adapter_model.safetensors").is_file()
    assert message.progress is not None
    assert (message.progress.step, message.progress.total_steps, message.progress.epoch) == (6, 6, 2)
    assert message.progress.checkpoint is not None
    assert message.progress.checkpoint.path == "jobs/default/tiny/local/checkpoints/step-6"


def test_a_node_that_waits_for_the_others_is_stopped_at_once(tmp_path: Path, cleanup: ExitStack) -> None:
    job, paths = prepare_tiny_job(tmp_path, compute={"device": "cpu", "nodes": 2})
    node = Node(1, 2, job, paths, free_port(), tmp_path, master="node-0.does-not-resolve.invalid")
    cleanup.callback(node.kill)
    wait_for(lambda: "waiting for node 0" in node.output.read_text(), [node])
    started = time.monotonic()
    node.process.send_signal(signal.SIGTERM)
    message = node.end()
    assert message.reason is Reason.TERMINATED
    assert time.monotonic() - started < 2


def test_a_node_that_waits_for_the_others_in_vain_is_stopped_at_once(tmp_path: Path, cleanup: ExitStack) -> None:
    # The name resolves, but nobody listens there: the agent waits in C++, where Python hears no signal.
    job, paths = prepare_tiny_job(tmp_path, compute={"device": "cpu", "nodes": 2})
    port = free_port()
    node = Node(0, 2, job, paths, port, tmp_path)
    cleanup.callback(node.kill)
    wait_for(lambda: accepts(port), [node])
    started = time.monotonic()
    node.process.send_signal(signal.SIGTERM)
    message = node.end()
    assert (message.reason, message.message) == (Reason.TERMINATED, "stopped by SIGTERM before it was done")
    assert time.monotonic() - started < 2


# The gang that takes a checkpoint inside the first epoch, and the one that goes on from it: sharding and processes.
CHANGES_OF_GANG = {
    "two processes with a shard each, then one": (("full", 2), ("replicate", 1)),
    "one process, then two with a shard each": (("replicate", 1), ("full", 2)),
}


@pytest.mark.parametrize("change", CHANGES_OF_GANG)
def test_a_run_goes_on_in_another_gang_with_the_loss_curve_of_one_that_never_stopped(
    change: str, alone: Finished, tmp_path: Path
) -> None:
    def train(sharding: str, num_processes: int) -> JobPaths:
        compute = {"sharding": sharding, "processesPerNode": num_processes}
        job, paths = prepare(tmp_path, 8 // num_processes, compute, checkpoint={"everySteps": 1, "keep": 9})
        train_in_gang(num_processes, tmp_path / f"store-{num_processes}", [(job, paths, num_processes)])
        return paths

    before, after = CHANGES_OF_GANG[change]
    paths = train(*before)
    for step in (2, 3, 4):
        shutil.rmtree(paths.checkpoints / f"step-{step}")
    train(*after)
    assert "resuming at step 1 of 4" in (paths.logs / "training.log").read_text()
    resumed = read_run(paths)
    assert resumed.losses == pytest.approx(alone.losses, rel=1e-6)
    for name, expected in alone.adapter.items():
        torch.testing.assert_close(resumed.adapter[name], expected, rtol=1e-3, atol=1e-4)
