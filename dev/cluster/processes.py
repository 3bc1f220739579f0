"""Starts, finds and stops the daemons of the cluster.

There are no pid files to go stale: every daemon carries its part's name and the digest of its command and configuration
in its environment, and is found by them in /proc. So a daemon that was killed is seen as gone, one whose configuration
has changed is started anew, and one that outlived a killed ``up`` is found again.
"""

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dev.cluster.commands import stopping
from dev.cluster.failure import ClusterError
from dev.cluster.layout import LOGS, MARK

STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Part:
    """A daemon of the cluster.

    Attributes:
        name: unique, such as ``kubelet-node1``; also the name of its log.
        command: absolute program and arguments.
        network_namespace: file of the namespace it runs in; None for the host's.
        configuration: files that it reads at start; a change in one starts it anew.
        environment: what it gets besides the caller's environment.
    """

    name: str
    command: tuple[str, ...]
    network_namespace: Path | None = None
    configuration: tuple[Path, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """The file that has everything it prints."""
        return LOGS / f"{self.name}.log"

    def digest(self) -> str:
        """Return a digest of everything that decides how the part behaves."""
        program = Path(self.command[0]).resolve()  # the cache's link names the version
        content = hashlib.sha256(repr((program, self.command, sorted(self.environment.items()))).encode())
        for path in self.configuration:
            content.update(path.read_bytes())
        return content.hexdigest()[:16]


@dataclass(frozen=True)
class Process:
    """A process of the cluster as /proc shows it; ``part`` and ``digest`` are what it was started with."""

    pid: int
    part: str
    digest: str
    program: str

    @property
    def is_shim(self) -> bool:
        """Whether it is the parent of a container, which outlives the containerd that made it."""
        return self.program.startswith("containerd-shim")


def cluster_processes() -> list[Process]:
    """Return every running process that carries the cluster's mark: daemons and container shims."""
    mark = f"{MARK}=".encode()
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            environment = (directory / "environ").read_bytes()
            if mark not in environment:
                continue
            program = (directory / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        except OSError:  # it ended while we looked
            continue
        value = next((word for word in environment.split(b"\0") if word.startswith(mark)), mark)
        part, _, digest = value.removeprefix(mark).decode(errors="replace").partition(":")
        if program:  # a zombie has no command line
            found.append(Process(int(directory.name), part, digest, Path(program).name))
    return found


def find(part: Part) -> Process | None:
    """Return the running process of a part, or None."""
    program = Path(part.command[0]).name
    for process in cluster_processes():
        if process.part == part.name and process.program == program:
            return process
    return None


def runs_as_configured(part: Part) -> bool:
    """Return whether the part runs with just this command and configuration."""
    process = find(part)
    return process is not None and process.digest == part.digest()


def ensure_running(part: Part) -> bool:
    """Start the part unless it runs with just this command and configuration; return whether it was started."""
    if runs_as_configured(part):
        return False
    if (outdated := find(part)) is not None:
        stop([outdated])
    part.log.parent.mkdir(parents=True, exist_ok=True)
    command = [*part.command]
    if part.network_namespace is not None:
        # NB: not `ip netns exec`, which mounts a new /sys in which the kubelet finds no control groups.
        command = ["nsenter", f"--net={part.network_namespace}", "--", *command]
    with part.log.open("ab") as log:
        log.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%S')} starting {' '.join(part.command)}\n".encode())
        log.flush()
        # setsid forks, so the daemon is nobody's child and leaves no zombie in a long-lived caller such as a test run.
        subprocess.run(
            ["setsid", "--fork", *command],
            env={**os.environ, **part.environment, MARK: f"{part.name}:{part.digest()}"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            check=True,
        )
    return True


def wait_until_ready(part: Part, is_ready: Callable[[], bool], *, timeout_seconds: float, advice: str) -> None:
    """Wait until a part answers.

    Raises:
        ClusterError: the part has ended, or has not become ready in time.
    """
    deadline = time.monotonic() + timeout_seconds
    not_before = time.monotonic() + 1.0  # nsenter needs a moment to become the part
    while not is_ready():
        if time.monotonic() > not_before and find(part) is None:
            raise ClusterError(part.name, "ended right after its start", advice, part.log)
        if time.monotonic() > deadline:
            raise ClusterError(part.name, f"not ready after {timeout_seconds:.0f} s", advice, part.log)
        if stopping.wait(0.2):
            raise ClusterError(part.name, "not waited for: another part has failed", "see the first failure")


def stop(processes: Iterable[Process]) -> None:
    """Ask processes to end, all at once, and kill those that have not ended after STOP_SECONDS."""
    remaining = {process.pid for process in processes}
    _signal(remaining, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while remaining and time.monotonic() < deadline:
        remaining = {pid for pid in remaining if is_alive(pid)}
        time.sleep(0.05)
    _signal(remaining, signal.SIGKILL)
    while remaining:
        remaining = {pid for pid in remaining if is_alive(pid)}
        time.sleep(0.05)


def kill(pids: Iterable[int]) -> None:
    """Kill processes that have nothing to save, such as containers of a cluster that is taken down."""
    _signal(set(pids), signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
