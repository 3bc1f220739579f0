"""A job survives the way through YAML, and a wrong one is told all that is wrong with it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_trainer.contract.job import JobFileError, TrainerJob, parse_job, read_job, write_job
from finetune_trainer.contract.paths import JobPaths

SMALLEST: dict[str, Any] = {
    "model": {"huggingFace": {"repository": "meta-llama/Llama-3.1-8B-Instruct"}},
    "datasets": [{"huggingFace": {"repository": "team/calls"}, "format": "hermes"}],
}
EVERYTHING: dict[str, Any] = {
    "model": {"path": "models/Größe"},
    "datasets": [
        {"path": "data/rows.jsonl", "format": "openai", "maxSamples": 7, "maxBadRowPercent": 5},
        {"huggingFace": {"repository": "a/b", "subset": "c", "split": "test", "revision": "v1"}, "format": "glaive"},
    ],
    "lora": {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
    "training": {
        "epochs": 1,
        "maxSequenceLength": 512,
        "overlong": "drop",
        "packing": False,
        "optimizer": {"learningRate": 1e-5},
        "schedule": {"warmupSteps": 0},
        "seed": 4294967295,
    },
    "checkpoint": {"everySteps": 5, "keep": 1},
    "compute": {"nodes": 2, "device": "cpu", "processesPerNode": 2, "sharding": "full"},
    "tracking": {"wandb": {"project": "calls", "mode": "offline"}},
}


def document(spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "calls", **metadata},
        "spec": spec,
    }


@pytest.mark.parametrize("spec", [SMALLEST, EVERYTHING], ids=["the smallest job", "a job with everything"])
def test_what_is_written_is_read(spec: dict[str, Any], tmp_path: Path) -> None:
    job = parse_job(document(spec, namespace="team-a", uid="1-2-3"))
    (tmp_path / "job.yaml").write_text(write_job(job), encoding="utf-8")
    assert read_job(tmp_path / "job.yaml") == job


def test_the_defaults_are_the_recipe_of_the_proof_of_concept() -> None:
    spec = parse_job(document(SMALLEST)).spec
    assert (spec.lora.rank, spec.lora.alpha, spec.lora.dropout) == (64, 128, 0.1)
    training = spec.training
    assert (training.epochs, training.max_steps_per_epoch) == (3, 1000)
    assert (training.batch_size, training.gradient_accumulation, training.max_sequence_length) == (2, 16, 4096)
    assert (training.optimizer.learning_rate, training.optimizer.weight_decay) == (2e-4, 0.01)
    assert (training.schedule.warmup_steps, training.log_every_steps, spec.checkpoint.every_steps) == (100, 10, 500)


def test_fields_that_only_kubernetes_needs_are_passed_over() -> None:
    cluster = {"storage": {"shared": {"size": "1Gi"}}, "secretName": "tokens", "compute": {"nodes": 2, "image": "x"}}
    assert parse_job(document(SMALLEST | cluster)).spec.compute.nodes == 2


def test_a_job_of_a_laptop_has_a_place_of_its_own() -> None:
    job = parse_job(document(SMALLEST))
    assert JobPaths.of(job, Path("/s"), None).job == Path("/s/jobs/default/calls/local")


WRONG: dict[str, tuple[Any, list[str]]] = {
    "a document of another kind": ({"kind": "Pod"}, ["is not one FineTuneJob"]),
    "a job without a name": (document(SMALLEST) | {"metadata": {}}, ["metadata.name: is missing"]),
    "a job without a spec": ({**document(SMALLEST), "spec": None}, ["spec: is missing"]),
    "a misspelt field and a value out of bounds, both told": (
        document(SMALLEST | {"training": {"epoch": 3, "batchSize": 0}}),
        ["spec.training.epoch: is not a known field", "spec.training.batchSize: "],
    ),
    "a gate on a metric that there is not": (
        document(SMALLEST | {"evaluation": {"gate": {"accuracy": ">= 0.85"}}}),
        [
            "spec.evaluation.gate.accuracy: is not a known field; known are functionAccuracy, exactArguments, "
            "argumentF1, callAccuracy, validJson, hallucinatedFunctions, loss, perplexity, improvesBase"
        ],
    ),
    "bounds that are none, each with one that is": (
        document(SMALLEST | {"evaluation": {"gate": {"functionAccuracy": ">= 85", "loss": "1.5"}}}),
        [
            'spec.evaluation.gate.functionAccuracy: must be a bound like ">= 0.85", between 0 and 1',
            'spec.evaluation.gate.loss: must be a bound like "<= 1.5"',
        ],
    ),
    "two sources": (
        document(SMALLEST | {"model": {"path": "m", "huggingFace": {"repository": "a/b"}}}),
        ["spec.model: set exactly one of huggingFace and path"],
    ),
    "no data set": (document(SMALLEST | {"datasets": []}), ["spec.datasets: "]),
    "a path that leaves the shared filesystem": (
        document(SMALLEST | {"model": {"path": "models/../../etc"}}),
        ["spec.model.path: "],
    ),
    "GPUs on a CPU": (
        document(SMALLEST | {"compute": {"device": "cpu", "gpusPerNode": 8}}),
        ["spec.compute: gpusPerNode is for device gpu"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_job_is_told_all_that_is_wrong(case: str, tmp_path: Path) -> None:
    wrong, problems = WRONG[case]
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(wrong))
    with pytest.raises(JobFileError) as error:
        read_job(path)
    assert str(error.value).startswith(f"{path}: ")
    for problem in problems:
        assert problem in str(error.value)


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match=r"none\.yaml: cannot be read"):
        read_job(tmp_path / "none.yaml")
    (tmp_path / "job.yaml").write_text("a: [")
    with pytest.raises(JobFileError, match=r"job\.yaml: is not YAML"):
        read_job(tmp_path / "job.yaml")


def test_a_job_cannot_be_changed() -> None:
    job: TrainerJob = parse_job(document(SMALLEST))
    with pytest.raises(ValueError, match="frozen"):
        job.name = "other"  # type: ignore[misc]
