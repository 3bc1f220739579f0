"""How many processors a container may use: what is asked of the kernel, not of the machine."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def num_available_cpus(cgroup: Path = CGROUP) -> int:
    """Return the whole CPUs that this container may use, at least 1.

    The smaller one of the affinity mask and the CPU limit of the control group, version 2 or 1
    (https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files).
    """
    limits = [len(os.sched_getaffinity(0))]
    quota, period = _quota_and_period(cgroup)
    if quota > 0:
        limits.append(max(1, round(quota / period)))
    return min(limits)


def _quota_and_period(cgroup: Path) -> tuple[int, int]:
    """Return microseconds of CPU time in each period of microseconds; a quota of -1 is no limit."""
    version_2 = cgroup / "cpu.max"
    if version_2.exists():
        quota, period = version_2.read_text(encoding="ascii").split()
        return (-1 if quota == "max" else int(quota)), int(period)
    quota_file, period_file = cgroup / "cpu/cpu.cfs_quota_us", cgroup / "cpu/cpu.cfs_period_us"
    if quota_file.exists():
        return int(quota_file.read_text(encoding="ascii")), int(period_file.read_text(encoding="ascii"))
    return -1, 1
