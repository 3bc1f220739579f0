"""Starts the processes of one node, waits for them, and tells how they ended.

One elastic agent a node, as torchrun starts one, but with retries off: the operator owns those.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from finetune_trainer.architecture import read_shape
from finetune_trainer.contract import environment as names
from finetune_trainer.contract import series
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.progress import ProgressReport
from finetune_trainer.contract.spec import Device, Sharding
from finetune_trainer.contract.termination import PreparedReport, Reason, TrainedReport
from finetune_trainer.errors import TrainerError
from finetune_trainer.failures import (
    explain,
    first_failure,
    first_line,
    read_progress,
    write_failure,
    write_progress,
)
from finetune_trainer.gang import COLLECTIVE_TIMEOUT, Node, Place
from finetune_trainer.memory_advice import advise
from finetune_trainer.planner.fitting import resolve_checkpointing
from finetune_trainer.processors import num_available_cpus
from finetune_trainer.stopping import StopLines, StopRequest, ask_on_sigterm

# Pods of a gang start when their nodes have pulled the image, so one may be minutes ahead of another.
RENDEZVOUS_TIMEOUT_SECONDS = 900
RESOLVE_INTERVAL_SECONDS = 2.0
MONITOR_INTERVAL_SECONDS = 0.5
LAST_WORD_SECONDS = 15.0
# The agent's own handler would end the processes at once; SIGTERM is left to `stopping`.
AGENT_SIGNALS = "SIGINT"
AGENT_LOGGER = "torch.distributed.elastic.multiprocessing.api"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Gang:
    """All processes of a job, and which node of it this is."""

    num_nodes: int
    processes_per_node: int
    node_rank: int
    master_address: str
    master_port: int
    run_id: str


@dataclass(frozen=True)
class Settings:
    """What the agent tells its processes besides the job."""

    failures: Path
    num_threads: int
    metrics_port: int
    stop_lines: tuple[Connection, ...]  # by local rank


def train(
    job: TrainerJob, paths: JobPaths, environment: Mapping[str, str]
) -> tuple[TrainedReport, ProgressReport | None]:
    """Train a prepared job on this node's processes, together with those of the other nodes.

    Returns the report, and on the node of rank 0 the last progress.

    Args:
        job: what to train.
        paths: where its files are.
        environment: of the pod; without the PET_* names the gang is this machine alone.

    Raises:
        TrainerError: with the reason and the rank of the process that failed first on this node.
    """
    gang = read_gang(job, environment)
    require_devices(job, gang)
    os.environ.update(process_environment(job.spec.compute.device, Path(tempfile.gettempdir()), os.environ))
    logging.getLogger(AGENT_LOGGER).setLevel(logging.CRITICAL)  # it would log tracebacks of what is told better below
    wait_until_resolved(gang.master_address, RENDEZVOUS_TIMEOUT_SECONDS)
    with tempfile.TemporaryDirectory(prefix="finetune-failures-") as name:
        failures, lines = Path(name), StopLines(gang.processes_per_node)
        settings = Settings(
            failures=failures,
            num_threads=max(1, num_available_cpus() // gang.processes_per_node),
            metrics_port=int(environment.get(names.METRICS_PORT, series.METRICS_PORT)),
            stop_lines=lines.ends,
        )
        with ask_on_sigterm(lines.ask, lambda: read_progress(failures), stop_grace_seconds(environment)):
            try:
                report = run_gang(job, paths, gang, settings)
            except TrainerError as error:
                error.progress = read_progress(failures)
                raise
        return report, read_progress(failures)


def run_gang(job: TrainerJob, paths: JobPaths, gang: Gang, settings: Settings) -> TrainedReport:
    """Be the agent of this node: meet the others, start the processes, wait for them.

    Raises:
        TrainerError: with the reason and the rank of the process that failed first on this node.
    """
    try:
        reports = elastic_launch(launch_config(gang), run_process)(job, paths, gang, settings)
    except ChildFailedError as error:
        raise first_failure(settings.failures, exit_codes(error)) from error
    except SignalException as error:
        raise TrainerError(Reason.TERMINATED, f"stopped by {signal.Signals(error.sigval).name}") from error
    except dist.DistError as error:
        raise TrainerError(
            Reason.COLLECTIVE_FAILED,
            f"node {gang.node_rank} of {gang.num_nodes} did not meet the others at {gang.master_address}:"
            f"{gang.master_port} within {RENDEZVOUS_TIMEOUT_SECONDS} s: {first_line(error)}. Check that all pods "
            "run, and that no network policy keeps them apart",
        ) from error
    report: TrainedReport = next(iter(reports.values()))
    return report


def stop_grace_seconds(environment: Mapping[str, str]) -> float:
    """Return the time that processes have for their last checkpoint: the pod's, less what the last word takes."""
    grace = float(environment.get(names.TERMINATION_GRACE_SECONDS, names.DEFAULT_TERMINATION_GRACE_SECONDS))
    return max(grace - LAST_WORD_SECONDS, grace / 2)


def read_gang(job: TrainerJob, environment: Mapping[str, str]) -> Gang:
    """Read this node's place from the environment; with no PET_MASTER_ADDR it is a laptop, and all of the job.

    Raises:
        TrainerError: INVALID_SPEC when a laptop is to be several nodes, or the environment contradicts the job.
    """
    compute = job.spec.compute
    run_id = f"{job.namespace}.{job.name}.{job.uid}.{environment.get(names.ATTEMPT, '1')}"
    address = environment.get(names.MASTER_ADDRESS)
    if address is None:
        if compute.nodes > 1:
            raise TrainerError(
                Reason.INVALID_SPEC,
                f"compute.nodes is {compute.nodes}, but {names.MASTER_ADDRESS} is not set, so this is one machine. Set "
                "compute.nodes: 1, or run the job on a cluster",
            )
        return Gang(1, compute.num_processes_per_node, 0, LOOPBACK, _free_port(), run_id)
    num_nodes = int(environment.get(names.NUM_NODES, compute.nodes))
    processes = int(environment.get(names.PROCESSES_PER_NODE, compute.num_processes_per_node))
    if (num_nodes, processes) != (compute.nodes, compute.num_processes_per_node):
        raise TrainerError(
            Reason.INVALID_SPEC,
            f"the job asks for {compute.nodes} nodes with {compute.num_processes_per_node} processes, the environment "
            f"({names.NUM_NODES}, {names.PROCESSES_PER_NODE}) for {num_nodes} with {processes}",
        )
    port = int(environment.get(names.MASTER_PORT, names.RENDEZVOUS_PORT))
    return Gang(num_nodes, processes, node_rank(environment), address, port, run_id)


def node_rank(environment: Mapping[str, str]) -> int:
    """Return this node's rank: given outright, or as the pod's index after the first rank of its role."""
    if names.NODE_RANK in environment:
        return int(environment[names.NODE_RANK])
    return int(environment.get(names.FIRST_NODE_RANK, "0")) + int(environment.get(names.JOB_COMPLETION_INDEX, "0"))


def require_devices(job: TrainerJob, gang: Gang) -> None:
    """Refuse to train on a CPU what was meant for GPUs.

    Raises:
        TrainerError: DEVICE_UNAVAILABLE.
    """
    if job.spec.compute.device is Device.CPU:
        return
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus < gang.processes_per_node:
        raise TrainerError(
            Reason.DEVICE_UNAVAILABLE,
            f"compute.device is gpu and {gang.processes_per_node} GPUs a node are asked for, but CUDA finds {num_gpus} "
            "here. Check that the node has a driver and the NVIDIA device plugin, and that the image's CUDA is not "
            "newer than the driver; or set compute.device: cpu",
        )


def process_environment(device: Device, temporary: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the processes need besides those that are set.

    Caches of compilers go to a directory that can be written: the root filesystem is read-only, and user 65532 has
    neither a home nor an entry in passwd.
    NB: torch names its cache after the user, and fails where the user has no name
    (https://github.com/pytorch/pytorch/blob/main/torch/_inductor/runtime/cache_dir_utils.py).
    """
    variables = {
        "TORCHINDUCTOR_CACHE_DIR": str(temporary / "torchinductor"),
        "TRITON_CACHE_DIR": str(temporary / "triton"),
        "WANDB_CACHE_DIR": str(temporary / "wandb-cache"),
        "WANDB_CONFIG_DIR": str(temporary / "wandb-config"),
        "WANDB_DATA_DIR": str(temporary / "wandb-data"),
    }
    if device is Device.CPU:
        # NB: by default OpenMP's threads spin while they wait. Where pods share processors, a step of SmolLM2-135M
        # took 65 s so, and 6 s with threads that sleep (https://gcc.gnu.org/onlinedocs/libgomp/OMP_005fWAIT_005fPOLICY.html).
        variables["OMP_WAIT_POLICY"] = "PASSIVE"
    return {name: value for name, value in variables.items() if name not in environment}


def wait_until_resolved(
    host: str,
    timeout_seconds: float,
    resolve: Callable[[str], object] = socket.gethostbyname,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until DNS knows a host.

    The name of node 0 appears when its pod has an address. Who asks before is told that it does not exist, and name
    servers remember that for some seconds, so this asks patiently.

    Raises:
        TrainerError: COLLECTIVE_FAILED when the time is over.
    """
    started = clock()
    has_told = False
    while True:
        try:
            resolve(host)
        except OSError as error:
            if clock() - started > timeout_seconds:
                raise TrainerError(
                    Reason.COLLECTIVE_FAILED,
                    f"node 0 is not found: the name {host} did not resolve within {timeout_seconds:.0f} s ({error}). "
                    "Check that its pod is scheduled, and the cluster's DNS",
                ) from error
            if not has_told:
                print(f"waiting for node 0: {host} does not resolve yet", flush=True)
                has_told = True
            sleep(RESOLVE_INTERVAL_SECONDS)
        else:
            return


def exit_codes(error: ChildFailedError) -> dict[int, int]:
    """Return the exit codes of the processes that failed, by rank; negative is the signal that killed one."""
    return {rank: failure.exitcode for rank, failure in error.failures.items()}


def launch_config(gang: Gang) -> LaunchConfig:
    """Return the agent's configuration, as torchrun makes it for a static rendezvous."""
    return LaunchConfig(
        min_nodes=gang.num_nodes,
        max_nodes=gang.num_nodes,
        nproc_per_node=gang.processes_per_node,
        run_id=gang.run_id,
        role="trainer",
        rdzv_endpoint=f"{gang.master_address}:{gang.master_port}",
        rdzv_backend="static",
        rdzv_configs={"rank": gang.node_rank, "timeout": RENDEZVOUS_TIMEOUT_SECONDS},
        max_restarts=0,
        monitor_interval=MONITOR_INTERVAL_SECONDS,
        start_method="spawn",
        signals_to_handle=AGENT_SIGNALS,
        local_addr=LOOPBACK if gang.num_nodes == 1 else None,
    )


def run_process(job: TrainerJob, paths: JobPaths, gang: Gang, settings: Settings) -> TrainedReport:
    """Train in one process of the gang, started by the agent; an error is left in a file for the agent."""
    # Imported where it is needed: the agent does without torchtune, which takes seconds to import.
    from finetune_trainer import recipe

    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])

    def leave() -> None:
        write_failure(settings.failures, rank, TrainerError(Reason.TERMINATED, "stopped before the training began"))
        os._exit(1)

    stop = StopRequest(settings.stop_lines[local_rank], leave)
    try:
        torch.set_num_threads(settings.num_threads)
        is_gpu = job.spec.compute.device is Device.GPU
        device = torch.device("cuda", local_rank) if is_gpu else torch.device("cpu")
        if is_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if is_gpu else "gloo", timeout=COLLECTIVE_TIMEOUT, device_id=device if is_gpu else None
        )
        place = Place(rank, local_rank, dist.get_world_size(), gang.processes_per_node, device)
        node = Node(settings.metrics_port, os.environ, stop, partial(write_progress, settings.failures))
        report = recipe.train(job, paths, place, node)
        dist.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - whatever it is, the agent has to learn of it
        failure = explain(error, lambda: advise_on_memory(job, paths, torch.device("cuda", local_rank)))
        write_failure(settings.failures, rank, failure)
        if failure.reason is Reason.ERROR:
            traceback.print_exc()
        sys.exit(1)  # not raised: the agent would print it twice more
    return report


def advise_on_memory(job: TrainerJob, paths: JobPaths, gpu: torch.device) -> str:
    """Return what to change of a job that was prepared, and ran out of a GPU's memory."""
    prepared = PreparedReport.model_validate_json(paths.prepared.read_text(encoding="utf-8"))
    shape, sharding = read_shape(paths.shared / prepared.model_path), Sharding(prepared.sharding)
    memory_bytes = torch.cuda.get_device_properties(gpu).total_memory
    recomputes = prepared.activation_checkpointing
    if recomputes is None:
        recomputes = resolve_checkpointing(shape, job.spec, sharding, memory_bytes) is not False
    return advise(shape, job.spec, sharding, recomputes, memory_bytes)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
