"""The processes of a pod, as the machine sees them on which the embedded cluster runs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.nodes import CGROUPS
from dev.cluster.processes import is_alive
from tests.e2e.kubectl import Manifest

_EATER = """
import time
eaten = []
while True:
    eaten.append(bytearray(16 << 20))
    time.sleep(0.01)
"""


@dataclass(frozen=True)
class Process:
    """A process of a container."""

    pid: int
    command: str

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def is_alive(self) -> bool:
        return is_alive(self.pid)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def memory_group(self) -> Path:
        """Return the control group whose limit of memory the process shares."""
        groups = Path(f"/proc/{self.pid}/cgroup").read_text().splitlines()
        paths = {controllers: path.lstrip("/") for _, controllers, path in (line.split(":", 2) for line in groups)}
        # With version 2 there is one hierarchy for all controllers, and it has no name.
        return CGROUPS / "memory" / paths["memory"] if "memory" in paths else CGROUPS / paths[""]

    def eat_memory_beside(self) -> subprocess.Popen[bytes]:
        """Start a process of the host that uses up the container's memory, and is not the one to be killed for it.

        Containers stand before processes of the host when the kernel has to choose.
        """
        enter = f"echo $$ > {self.memory_group() / 'cgroup.procs'}"
        return subprocess.Popen(["sh", "-c", f'{enter} && exec "$0" -c "$1"', sys.executable, _EATER])


def rank_process(pod: Manifest) -> Process:
    """Return the process of a training pod that trains: its agent has spawned it."""
    return _only(pod, "the process that trains", lambda command: "multiprocessing.spawn import spawn_main" in command)


def agent_process(pod: Manifest) -> Process:
    """Return the process of a training pod that starts the others and waits for them."""
    return _only(pod, "the agent", lambda command: command.startswith("python -m finetune_trainer train"))


def operator_process(pod: Manifest) -> Process:
    """Return the process of the operator's pod that does its work; its parent only hands signals on."""
    begins = "python -m finetune_operator"
    return _only(pod, "the operator", lambda command: command.startswith(begins), timeout_seconds=120)


def processes_of(pod: Manifest) -> list[Process]:
    """Return all processes of a pod, its sandbox's too."""
    mark = f"/pod{pod['metadata']['uid']}/"
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            if mark not in (directory / "cgroup").read_text():
                continue
            words = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended while we looked
            continue
        found.append(Process(int(directory.name), " ".join(word.decode(errors="replace") for word in words).strip()))
    return found


def _only(pod: Manifest, what: str, is_it: Callable[[str], bool], timeout_seconds: float = 30) -> Process:
    deadline = time.monotonic() + timeout_seconds
    while True:
        processes = processes_of(pod)
        found = [process for process in processes if is_it(process.command)]
        if len(found) == 1:
            return found[0]
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} was not found in {pod['metadata']['name']}, where there are: {processes}")
        time.sleep(0.2)
