"""The agents of a case: started as pods start them, waited for, and robbed of a process."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.trainer.scaling.cases import Case


class Run:
    """The agents of a case, one a node, each with its share of the GPUs.

    Args:
        case: what is trained.
        agent: returns the command line of a node's agent, and the file for its log.
        variables: that all processes have besides the case's own.
        on_cpu: there are no GPUs to share.
    """

    def __init__(
        self,
        case: Case,
        agent: Callable[[int], tuple[Sequence[str], Path]],
        variables: Mapping[str, str],
        on_cpu: bool,
    ) -> None:
        per_node, master_port = len(case.gpus) // case.nodes, free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        for node in range(case.nodes):
            gpus = ",".join(str(gpu) for gpu in case.gpus[node * per_node : (node + 1) * per_node])
            environment = os.environ | variables | dict(case.environment) | {"FINETUNE_METRICS_PORT": str(free_port())}
            environment |= {} if on_cpu else {"CUDA_VISIBLE_DEVICES": gpus, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
            if case.nodes > 1:
                environment |= place_in_gang(case.nodes, per_node, master_port, node)
            line, log_file = agent(node)
            with log_file.open("w") as log:
                self.processes.append(
                    subprocess.Popen(line, stdout=log, stderr=log, env=environment, start_new_session=True)
                )

    def wait(self, seconds: float, is_enough: Callable[[], bool] = lambda: False) -> list[int]:
        """Wait for the end, or end it when the time is over or it is enough; return the exit codes."""
        deadline = time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes):
            if time.monotonic() > deadline or is_enough():
                for process in self.processes:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.1)
        return [process.returncode for process in self.processes]

    def kill_a_process(self) -> None:
        """Kill one of the processes that train."""
        children = psutil.Process(self.processes[-1].pid).children(recursive=True)
        training = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        training[-1].kill()


def place_in_gang(num_nodes: int, per_node: int, master_port: int, node: int) -> Mapping[str, str]:
    """Return what the operator tells an agent of its gang."""
    return {
        "PET_NNODES": str(num_nodes),
        "PET_NPROC_PER_NODE": str(per_node),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(master_port),
        "PET_NODE_RANK": str(node),
    }


def own_processors(number: int) -> list[str]:
    """Return what begins a command that is to run on four processors of a large machine."""
    num_processors = os.cpu_count() or 1
    first = 4 * number % num_processors
    return ["taskset", "-c", f"{first}-{first + 3}"] if num_processors >= 16 else []


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
