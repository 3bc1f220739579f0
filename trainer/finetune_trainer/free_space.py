"""How much room is left on the filesystems that a training writes to.

A thread measures it: a filesystem over a network may take minutes to answer, and neither a step nor a scrape waits for
that.
"""

import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from finetune_trainer.contract import series
from finetune_trainer.contract.instruments import gauge_family
from finetune_trainer.contract.progress import FilesystemReport

MEASURE_EVERY_SECONDS = 15.0


class FreeSpace(Collector):
    """The room on some filesystems, as last measured; a thread measures it until the process ends.

    Args:
        filesystems: a directory on each of them, by the name under which it is told.
    """

    def __init__(self, filesystems: Mapping[str, Path] | None = None) -> None:
        self.reports: tuple[FilesystemReport, ...] = ()
        self._filesystems = filesystems or {}
        if self._filesystems:
            self.measure()  # nobody waits longer for this than for what the training reads from them next
            threading.Thread(target=self._measure_again_and_again, name="free space", daemon=True).start()

    def collect(self) -> Iterable[Metric]:
        """Return what was last measured."""
        size = gauge_family(series.BY_NAME[series.STORAGE_SIZE_BYTES])
        free = gauge_family(series.BY_NAME[series.STORAGE_FREE_BYTES])
        for report in self.reports:
            size.add_metric([report.name], report.size_bytes)
            free.add_metric([report.name], report.free_bytes)
        return [size, free]

    def measure(self) -> None:
        """Measure once. A filesystem that gives no answer is left out: whoever writes to it will say what is wrong."""
        reports = []
        for name, directory in self._filesystems.items():
            try:
                usage = shutil.disk_usage(directory)
            except OSError:
                continue
            reports.append(FilesystemReport(name=name, size_bytes=usage.total, free_bytes=usage.free))
        self.reports = tuple(reports)

    def _measure_again_and_again(self) -> None:
        while True:
            time.sleep(MEASURE_EVERY_SECONDS)
            self.measure()
