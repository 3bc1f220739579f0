"""What Kubeflow's training-operator really does to a gang, seen with a trainer that pretends what a test needs."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.cluster.commands import output_of
from dev.cluster.images import load_archive
from dev.cluster.layout import IMAGE_PREFIX, NODES
from dev.cluster.nodes import ctr
from dev.cluster.tiny_image import BUSYBOX, docker_archive
from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl
from tests.unit.operator.kubernetes_objects import PREPARED_MESSAGE

pytestmark = [pytest.mark.e2e, pytest.mark.beside]

IMAGE = f"{IMAGE_PREFIX}/finetune-pretended-trainer:1"
# It prepares at once. As a master it trains nothing and ends well at once, before its worker has found it.
PROGRAM = f"""\
#!/bin/sh
if [ "$1" = prepare ]; then
  echo '{json.dumps(PREPARED_MESSAGE)}' > /dev/termination-log
elif [ "$PET_NODE_RANK" != 0 ]; then
  tail -f /dev/null
fi
"""


@pytest.fixture(scope="module")
def pretended_trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image on both nodes whose trainer pretends."""
    archive = tmp_path_factory.mktemp("image") / "image.tar"
    archive.write_bytes(docker_archive(IMAGE, _layer(), {"Entrypoint": ["/trainer"], "Env": ["PATH=/bin"]}))
    load_archive(Path(archive))
    yield IMAGE
    for node in NODES:
        output_of(node.name, [*ctr(node), "images", "remove", IMAGE])


def test_a_gang_whose_master_alone_has_ended_well_has_not_succeeded(namespace: Kubectl, pretended_trainer: str) -> None:
    """The training-operator calls it succeeded, and deletes the worker that still waits for its master."""
    namespace.apply(
        tiny_job(
            "hasty",
            compute__backend="PyTorchJob",
            compute__image=pretended_trainer,
            compute__imagePullPolicy="Never",
            runPolicy={"maxRestarts": 0, "terminationGracePeriodSeconds": 5},
        )
    )
    job = namespace.wait_for_job("hasty", lambda job: job.phase in ("Succeeded", "Failed"), timeout_seconds=180)
    (pytorch_job,) = namespace.items("pytorchjobs")
    conditions = {condition["type"]: condition["status"] for condition in pytorch_job["status"]["conditions"]}
    assert conditions["Succeeded"] == "True"
    assert job.phase == "Failed"
    # Which of them depends on whether the worker's end or the PyTorchJob's word is seen first.
    assert job.condition("Failed")["reason"] in ("CollectiveFailed", "PodDeleted", "JobFailed")


def _layer() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in (("bin/busybox", BUSYBOX.read_bytes()), ("trainer", PROGRAM.encode())):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
        for command in ("sh", "tail", "echo"):
            link = tarfile.TarInfo(f"bin/{command}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return buffer.getvalue()
