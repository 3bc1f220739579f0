"""What a process has used so far, from /proc."""

import os
from collections.abc import Mapping
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process, in user and kernel mode.

    Raises:
        OSError: it is gone.
    """
    # The name of the program, in parentheses, may hold anything: fields are counted from behind it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user_ticks, system_ticks = int(fields[11]), int(fields[12])
    return (user_ticks + system_ticks) / _TICKS_PER_SECOND


def cpu_seconds_of(processes: Mapping[str, int]) -> dict[str, float]:
    """Return the processor time of several processes by their names here."""
    return {name: cpu_seconds(pid) for name, pid in processes.items()}


def peak_memory_bytes(pid: int) -> int:
    """Return the most memory that a process has had resident.

    Raises:
        OSError: it is gone.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"process {pid} has no memory any more")
