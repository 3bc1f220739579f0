"""`python -m finetune_trainer train` as pods run it: an agent a node, stopped and started again, and failing."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file

from finetune_trainer.contract import series
from finetune_trainer.contract.job import TrainerJob, write_job
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import Reason, TerminationMessage, read_termination
from tests.tiny_run import MODEL_PATH, prepare_tiny_job

DEADLINE_SECONDS = 100


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """One pod of a gang: a process group of its own, with the environment that the operator gives it."""

    def __init__(self, rank: int, num_nodes: int, job: TrainerJob, paths: JobPaths, port: int, root: Path) -> None:
        self.metrics_port = free_port()
        self.termination_log = root / f"termination-{rank}"
        self.termination_log.unlink(missing_ok=True)
        job_file = root / f"job-{rank}.yaml"
        job_file.write_text(write_job(job))
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PET_NNODES": str(num_nodes),
            "PET_NPROC_PER_NODE": "1",
            "PET_MASTER_ADDR": "localhost",
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

    def scrape(self) -> dict[str, float]:
        url = f"http://127.0.0.1:{self.metrics_port}{series.METRICS_PATH}"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                text = response.read().decode()
        except OSError:
            return {}
        return {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}


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


def test_a_gang_of_two_nodes_is_stopped_and_goes_on_from_its_checkpoint(tmp_path: Path, cleanup: ExitStack) -> None:
    job, paths = prepare_tiny_job(
        tmp_path,
        training={"epochs": 150, "gradientAccumulation": 4, "batchSize": 1, "maxSequenceLength": 32},
        compute={"device": "cpu", "nodes": 2, "sharding": "full"},
        checkpoint={"everySteps": 20},
    )
    leader, worker = start_gang(job, paths, tmp_path, cleanup)
    wait_for(lambda: leader.scrape().get(series.CHECKPOINT_LAST_STEP, 0) >= 20, [leader, worker])
    scraped = leader.scrape()
    assert scraped[series.STEPS_TOTAL] == 300
    assert scraped[series.STEP] >= 20
    assert series.NETWORK_TRANSMIT_BYTES_TOTAL in worker.scrape()

    worker.process.send_signal(signal.SIGTERM)
    stopped, bereft = worker.end(), leader.end()
    assert (stopped.reason, stopped.message) == (Reason.TERMINATED, "stopped by SIGTERM")
    assert (bereft.reason, bereft.rank) == (Reason.COLLECTIVE_FAILED, 0)
    assert "another process was lost" in bereft.message

    leader, worker = start_gang(job, paths, tmp_path, cleanup)
    ends = [leader.end(), worker.end()]
    assert [end.reason for end in ends] == [Reason.SUCCEEDED, Reason.SUCCEEDED], leader.output.read_text()
    assert ends[0].trained == ends[1].trained is not None
    assert ends[0].trained.steps == 300
    assert (paths.shared / ends[0].trained.adapter_path / "adapter_model.safetensors").is_file()
    assert "resuming at step" in (paths.logs / "training.log").read_text()


def test_the_reason_of_a_failed_process_reaches_the_termination_message(tmp_path: Path, cleanup: ExitStack) -> None:
    job, paths = prepare_tiny_job(tmp_path)
    weights_file = paths.shared / MODEL_PATH / "model.safetensors"
    weights = load_file(weights_file)
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, weights_file)
    (node,) = start_gang(job, paths, tmp_path, cleanup)
    message = node.end()
    assert node.process.returncode == 1
    assert (message.reason, message.rank, message.step) == (Reason.DIVERGED, 0, 0)
    assert message.message.startswith("step 1: loss is nan")
