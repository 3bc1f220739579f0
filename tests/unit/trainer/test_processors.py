import os
from pathlib import Path

import pytest

from finetune_trainer.processors import num_available_cpus

ALL = len(os.sched_getaffinity(0))
LIMITS = {
    "no limit": ({"cpu.max": "max 100000"}, ALL),
    "one CPU": ({"cpu.max": "100000 100000"}, 1),
    "half a CPU is one thread": ({"cpu.max": "50000 100000"}, 1),
    "a limit above the machine": ({"cpu.max": "99900000 100000"}, ALL),
    "version 1, one CPU": ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    "version 1, no limit": ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, ALL),
    "no control group": ({}, ALL),
}


@pytest.mark.parametrize(("files", "num_cpus"), LIMITS.values(), ids=LIMITS.keys())
def test_a_container_uses_the_cpus_it_was_given(tmp_path: Path, files: dict[str, str], num_cpus: int) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert num_available_cpus(tmp_path) == num_cpus
