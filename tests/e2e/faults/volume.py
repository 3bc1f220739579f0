"""A shared filesystem of a few megabytes, which can be filled."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dev.cluster.commands import output_of
from dev.cluster.storage import VOLUMES
from tests.e2e.kubectl import Kubectl

CLAIM = "small"
# Model, data, two checkpoints and a third that is being written take a quarter of it.
SIZE_MIB = 64


class SmallVolume:
    """A filesystem in memory that both nodes see, behind a claim.

    Args:
        kubectl: in the namespace of the claim.
    """

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self._directory = VOLUMES / f"small-{kubectl.namespace}"
        self._filler = self._directory / "filler"

    def make(self) -> None:
        self._directory.mkdir(parents=True)
        size = f"size={SIZE_MIB}m,mode=0777"
        output_of("volume", ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self._directory)])
        capacity = {"storage": f"{SIZE_MIB}Mi"}
        shared = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        self._kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": self._directory.name},
                "spec": shared
                | {
                    "capacity": capacity,
                    "persistentVolumeReclaimPolicy": "Retain",
                    "hostPath": {"path": str(self._directory)},
                    "claimRef": {"namespace": self._kubectl.namespace, "name": CLAIM},
                },
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": CLAIM},
                "spec": shared | {"resources": {"requests": capacity}, "volumeName": self._directory.name},
            },
        )

    def fill(self) -> None:
        """Leave not a single byte."""
        statistics = os.statvfs(self._directory)
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, statistics.f_bavail * statistics.f_frsize)

    def clear(self) -> None:
        self._filler.unlink()

    def remove(self) -> None:
        self._kubectl.run("delete", "persistentvolume", self._directory.name, "--wait=false")
        # Pods that still end hold it; from now on nobody can enter it.
        output_of("volume", ["umount", "--lazy", str(self._directory)])
        self._directory.rmdir()


@contextmanager
def small_volume(kubectl: Kubectl) -> Iterator[None]:
    """A small volume behind the claim CLAIM of a namespace."""
    volume = SmallVolume(kubectl)
    volume.make()
    try:
        yield
    finally:
        volume.remove()
