import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.job import TrainerJob, parse_job
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.spec import Device
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.launch import (
    Gang,
    launch_config,
    process_environment,
    read_gang,
    require_devices,
    train,
    wait_until_resolved,
)


def job_of(compute: dict[str, Any], **training: Any) -> TrainerJob:
    spec = {
        "model": {"path": "models/tiny"},
        "datasets": [{"path": "data.jsonl", "format": "openai"}],
        "training": training,
        "compute": compute,
    }
    metadata = {"name": "calls", "namespace": "team-a", "uid": "7d0f"}
    return parse_job({"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": spec})


TWO_NODES = job_of({"nodes": 2, "gpusPerNode": 8})
POD = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "8",
    "PET_MASTER_ADDR": "calls-a1-node-0.calls-a1",
    "PET_MASTER_PORT": "29500",
    "FINETUNE_ATTEMPT": "3",
}
NODE_RANKS = {
    "an Indexed Job numbers its pods": ({"JOB_COMPLETION_INDEX": "1"}, 1),
    "workers come after the leader": ({"FINETUNE_FIRST_NODE_RANK": "1", "JOB_COMPLETION_INDEX": "0"}, 1),
    "a PyTorchJob gives the rank itself": ({"PET_NODE_RANK": "1", "JOB_COMPLETION_INDEX": "0"}, 1),
    "nothing is said": ({}, 0),
}


@pytest.mark.parametrize(("variables", "node_rank"), NODE_RANKS.values(), ids=NODE_RANKS.keys())
def test_a_pod_finds_its_place_in_the_gang(variables: dict[str, str], node_rank: int) -> None:
    gang = read_gang(TWO_NODES, POD | variables)
    assert gang == Gang(2, 8, node_rank, "calls-a1-node-0.calls-a1", 29500, "team-a.calls.7d0f.3")


def test_a_laptop_is_a_gang_of_one_node_on_a_port_of_its_own() -> None:
    job = job_of({"device": "cpu", "processesPerNode": 2})
    first, second = read_gang(job, {}), read_gang(job, {})
    assert (first.num_nodes, first.processes_per_node, first.node_rank) == (1, 2, 0)
    assert first.master_address == "127.0.0.1"
    assert first.master_port != second.master_port


CONTRADICTIONS = {
    "two nodes on a laptop": ({}, "compute.nodes is 2, but PET_MASTER_ADDR is not set"),
    "another number of nodes": (POD | {"PET_NNODES": "4"}, "asks for 2 nodes with 8 processes.* for 4 with 8"),
    "another number of processes": (POD | {"PET_NPROC_PER_NODE": "1"}, "for 2 with 1"),
}


@pytest.mark.parametrize(("environment", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_an_environment_that_contradicts_the_job_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(TrainerError, match=message) as caught:
        read_gang(TWO_NODES, environment)
    assert caught.value.reason is Reason.INVALID_SPEC


def test_a_job_for_more_gpus_than_there_are_does_not_fall_back_to_the_cpu() -> None:
    job = job_of({"gpusPerNode": 64})
    with pytest.raises(TrainerError, match=r"64 GPUs a node are asked for, but CUDA finds .*device: cpu") as caught:
        require_devices(job, read_gang(job, {}))
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE


def test_the_agent_restarts_nothing_by_itself() -> None:
    config = launch_config(read_gang(TWO_NODES, POD | {"JOB_COMPLETION_INDEX": "1"}))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node, config.max_restarts) == (2, 2, 8, 0)
    assert config.rdzv_endpoint == "calls-a1-node-0.calls-a1:29500"
    assert config.rdzv_configs["rank"] == 1


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def resolves_after(seconds: float, clock: Clock) -> Callable[[str], str]:
    def resolve(host: str) -> str:
        if clock() < seconds:
            raise OSError(f"Name or service not known: {host}")
        return "10.0.0.7"

    return resolve


def test_a_node_waits_until_the_name_of_node_0_appears(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    wait_until_resolved("node-0", 900, resolves_after(100, clock), clock.sleep, clock)
    assert 100 <= clock.seconds < 103
    assert capsys.readouterr().out == "waiting for node 0: node-0 does not resolve yet\n"


def test_a_node_gives_up_on_node_0_after_the_stated_time() -> None:
    clock = Clock()
    with pytest.raises(TrainerError, match="the name node-0 did not resolve within 900 s") as caught:
        wait_until_resolved("node-0", 900, resolves_after(10_000, clock), clock.sleep, clock)
    assert caught.value.reason is Reason.COLLECTIVE_FAILED
    assert clock.seconds < 905


def test_a_process_writes_its_caches_where_it_may_unless_told_otherwise() -> None:
    variables = process_environment(Device.GPU, Path("/tmp"), {"TRITON_CACHE_DIR": "/mnt/cache"})
    assert variables["TORCHINDUCTOR_CACHE_DIR"] == "/tmp/torchinductor"
    assert "TRITON_CACHE_DIR" not in variables
    assert all(value.startswith("/tmp/") for value in variables.values())


def test_threads_sleep_while_they_wait_on_a_cpu_only() -> None:
    assert process_environment(Device.CPU, Path("/tmp"), {})["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in process_environment(Device.GPU, Path("/tmp"), {})


def test_a_node_that_nobody_meets_says_where_it_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.launch.RENDEZVOUS_TIMEOUT_SECONDS", 1)
    job = job_of({"nodes": 2, "device": "cpu"})
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    environment = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port), "JOB_COMPLETION_INDEX": "1"}
    with pytest.raises(TrainerError, match=rf"node 1 of 2 did not meet the others at 127\.0\.0\.1:{port}") as caught:
        train(job, JobPaths.of(job, tmp_path, None), environment)
    assert caught.value.reason is Reason.COLLECTIVE_FAILED
