"""Everything that a person gets wrong, and what the job says about it.

All the jobs are applied at once and each test waits for its own, because most of their time is waiting.
"""

from pathlib import Path
from typing import Any

import pytest

from dev.cluster.image_build import TRAINER
from tests.e2e.jobs import GATED_MODEL, start_reader, tiny_job
from tests.e2e.kubectl import Kubectl, Manifest

pytestmark = [pytest.mark.e2e, pytest.mark.beside]

SHARED = {"shared": {"claimName": "data"}}
SLOW = 360.0  # seconds: so many jobs at once, beside those of other tests


def _files(path: str, format_: str = "hermes") -> list[dict[str, Any]]:
    return [{"path": path, "format": format_}]


FAULTS: dict[str, Manifest] = {
    "no-storage-class": tiny_job("no-storage-class", storage__shared={"size": "1Gi", "storageClassName": "no-such"}),
    "claim-missing": tiny_job("claim-missing", storage={"shared": {"claimName": "not-there"}}),
    "image-missing": tiny_job("image-missing", storage=SHARED, compute__image="localhost:5000/no-such-image:1"),
    "repository-missing": tiny_job(
        "repository-missing", storage=SHARED, model__huggingFace__repository="finetune-operator/no-such-model"
    ),
    "gated": tiny_job("gated", storage=SHARED, model__huggingFace__repository=GATED_MODEL),
    "bad-rows": tiny_job("bad-rows", storage=SHARED, datasets=_files("data/bad-rows.jsonl")),
    "empty": tiny_job("empty", storage=SHARED, datasets=_files("data/empty.jsonl")),
    "file-missing": tiny_job("file-missing", storage=SHARED, datasets=_files("data/not-there.jsonl")),
    "wrong-format": tiny_job("wrong-format", storage=SHARED, datasets=_files("data/glaive.jsonl")),
    "too-long": tiny_job("too-long", storage=SHARED, training__maxSequenceLength=1_000_000),
    "no-such-gpus": tiny_job(
        "no-such-gpus", storage=SHARED, compute={"nodes": 2, "gpusPerNode": 8}, training__precision="fp32"
    ),
}

# How each ends: condition, reason, and words that a person needs to find in its message.
ENDS_FAILED = {
    "repository-missing": ("ModelUnavailable", ["finetune-operator/no-such-model", "there is no such model"]),
    "gated": ("ModelUnavailable", [GATED_MODEL, "HF_TOKEN"]),
    "bad-rows": ("DataInvalid", ["bad-rows.jsonl", "row 2"]),
    "empty": ("DataInvalid", ["empty.jsonl"]),
    "file-missing": ("DataUnavailable", ["data/not-there.jsonl"]),
    "wrong-format": ("DataInvalid", ["glaive"]),
    "too-long": ("InvalidSpec", ["maxSequenceLength", "1000000"]),
}
WAITS = {
    "no-storage-class": ("Prepared", ["no-such"]),
    "claim-missing": ("Prepared", ["not-there"]),
    "image-missing": ("Prepared", ["no-such-image"]),
    "no-such-gpus": ("Running", ["nvidia.com/gpu"]),
}


@pytest.fixture(scope="module")
def faults(module_namespace: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    kubectl = module_namespace
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data"},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "shared-fs",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
    )
    uploader = start_reader(kubectl, TRAINER.reference(), {"/mnt/shared": "data"}, name="uploader")
    directory = tmp_path_factory.mktemp("data")
    good = Path("manifests/samples/data/function-calling-hermes.jsonl").read_text(encoding="utf-8").splitlines()
    glaive = Path("manifests/samples/data/function-calling-glaive.jsonl").read_text(encoding="utf-8")
    contents = {"bad-rows.jsonl": "\n".join([good[0], '{"conversations": [', good[1]]) + "\n"}
    contents |= {"empty.jsonl": "", "glaive.jsonl": glaive}
    for name, text in contents.items():
        (directory / name).write_text(text, encoding="utf-8")
        uploader.put(directory / name, f"/mnt/shared/data/{name}")
    kubectl.apply(*FAULTS.values())
    return kubectl


@pytest.mark.parametrize("name", ENDS_FAILED)
def test_a_job_that_cannot_work_fails_before_a_gpu_is_held_and_says_why(faults: Kubectl, name: str) -> None:
    reason, words = ENDS_FAILED[name]
    job = faults.wait_for_job(name, lambda job: job.phase == "Failed", timeout_seconds=SLOW)
    failed = job.condition("Failed")
    assert (failed["status"], failed["reason"]) == ("True", reason)
    for word in words:
        assert word in failed["message"]
    assert not faults.items("jobs", f"finetune.dev/job={name},finetune.dev/stage=train")
    assert any(reason in event for event in faults.events(name))


@pytest.mark.parametrize("name", WAITS)
def test_a_job_that_lacks_something_of_the_cluster_waits_and_says_for_what(faults: Kubectl, name: str) -> None:
    condition_type, words = WAITS[name]

    def says_it(job: Any) -> bool:
        message = job.condition(condition_type)["message"]
        return job.condition(condition_type)["status"] == "False" and all(word in message for word in words)

    job = faults.wait_for_job(name, says_it, timeout_seconds=SLOW)
    assert job.phase == "Pending"
    faults.wait_until("an Event says it too", lambda: any(words[0] in event for event in faults.events(name)))


def test_a_claim_that_is_made_later_lets_the_waiting_job_go_on(faults: Kubectl) -> None:
    faults.wait_for_job("claim-missing", lambda job: "not-there" in job.condition("Prepared")["message"])
    faults.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "not-there"},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "shared-fs",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
    )
    faults.wait_for_job("claim-missing", lambda job: job.phase == "Succeeded")


def test_nothing_half_made_is_left_on_the_shared_filesystem(faults: Kubectl) -> None:
    """Runs last in this file: every failed job has ended by then."""
    for name in ENDS_FAILED:
        faults.wait_for_job(name, lambda job: job.phase == "Failed", timeout_seconds=SLOW)
    listing = faults.run("exec", "uploader", "--", "find", "/mnt/shared", "-maxdepth", "2", "-mindepth", "2")
    entries = [line for line in listing.split() if "/models/" in line or "/datasets/" in line]
    unfinished = [entry for entry in entries if ".partial" in entry or ".tmp" in entry]
    assert unfinished == []
