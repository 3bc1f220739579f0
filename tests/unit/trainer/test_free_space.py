import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from finetune_trainer.contract import series
from finetune_trainer.free_space import FreeSpace

MEBIBYTE = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 8 MiB."""
    if os.geteuid() != 0:
        pytest.fail("this test mounts a small filesystem: run it as root, as `make test` is run")
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)], check=True)
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_it_tells_the_size_of_a_filesystem_and_what_may_still_be_written(small_disk: Path) -> None:
    (small_disk / "checkpoint").write_bytes(bytes(3 * MEBIBYTE))
    (report,) = FreeSpace({"shared": small_disk}).reports
    assert (report.name, report.size_bytes, report.free_bytes) == ("shared", 8 * MEBIBYTE, 5 * MEBIBYTE)


def test_it_follows_what_is_written_and_removed(small_disk: Path) -> None:
    free_space = FreeSpace({"shared": small_disk})
    registry = CollectorRegistry()
    registry.register(free_space)
    seen = []
    for size in (0, 6 * MEBIBYTE, 0):
        (small_disk / "checkpoint").write_bytes(bytes(size))
        free_space.measure()
        seen.append(registry.get_sample_value(series.STORAGE_FREE_BYTES, {"filesystem": "shared"}))
    assert seen == [8 * MEBIBYTE, 2 * MEBIBYTE, 8 * MEBIBYTE]
    assert registry.get_sample_value(series.STORAGE_SIZE_BYTES, {"filesystem": "shared"}) == 8 * MEBIBYTE


def test_a_filesystem_that_is_gone_is_left_out_and_harms_nothing(tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    lost.mkdir()
    free_space = FreeSpace({"shared": tmp_path, "network": lost})
    shutil.rmtree(lost)
    free_space.measure()
    assert [report.name for report in free_space.reports] == ["shared"]
