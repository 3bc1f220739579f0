"""Every sample is a job that the operator carries out."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api.job import FineTuneJob
from finetune_operator.build import build_all
from finetune_operator.plan import make_plan
from finetune_trainer.contract.job import read_job
from tests.factories import SETTINGS

FOLDER = Path(__file__).resolve().parents[3] / "manifests" / "samples"
UPLOAD_POD = FOLDER / "upload-pod.yaml"
JOBS = sorted(set(FOLDER.glob("*.yaml")) - {UPLOAD_POD})
EXISTING = {"my-models": ["ReadWriteMany"], "my-logs": ["ReadWriteOnce"]}


def body_of(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_sample_is_carried_out(path: Path) -> None:
    plan = make_plan(FineTuneJob.parse(body_of(path)), SETTINGS, EXISTING)
    assert plan.missing_claims == ()
    assert {manifest["kind"] for manifest in build_all(plan, attempt=1)} >= {"ConfigMap", "Service", "Job"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_sample_runs_on_a_laptop_as_it_is(path: Path) -> None:
    assert read_job(path).spec == FineTuneJob.parse(body_of(path)).trainer_job().spec


def test_the_proof_of_concept_trains_on_sixteen_gpus_with_a_global_batch_of_512() -> None:
    job = FineTuneJob.parse(body_of(FOLDER / "llama-3.1-8b-function-calling.yaml"))
    assert (job.spec.compute.world_size, job.spec.global_batch) == (16, 512)


def test_the_upload_pod_writes_where_the_job_with_own_data_reads() -> None:
    pod, job = body_of(UPLOAD_POD), FineTuneJob.parse(body_of(FOLDER / "own-data.yaml"))
    (volume,) = pod["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == job.spec.storage.shared.claim_name
    assert job.spec.datasets[0].path == "data/my-calls.jsonl"
