"""The API as the operator reads it: what is taken, what is refused, and in which words."""

from decimal import Decimal
from typing import Any

import pytest

from finetune_operator.api.job import FineTuneJob
from finetune_operator.errors import InvalidJob
from finetune_operator.quantity import quantity_value
from tests.factories import make_job, manifest
from tests.refused_manifests import REFUSED, REFUSED_NAMES


@pytest.mark.parametrize(("patch", "path"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_manifest_is_refused_and_the_field_named(patch: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidJob) as refusal:
        make_job(patch)
    assert len(refusal.value.problems) == 1
    assert refusal.value.problems[0].startswith(f"{path}: ")


@pytest.mark.parametrize("name", REFUSED_NAMES.values(), ids=REFUSED_NAMES.keys())
def test_a_name_that_its_objects_cannot_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidJob, match=r"^metadata\.name: a name has at most 63 characters"):
        make_job(name=name)


def test_a_name_of_63_characters_is_taken() -> None:
    assert make_job(name="a" * 63).metadata.name == "a" * 63


def test_every_problem_of_a_manifest_is_named_at_once() -> None:
    with pytest.raises(InvalidJob) as refusal:
        make_job({"lora": {"rank": 0}, "training": {"epoch": 3}, "storage": {"shared": {"claimName": "models"}}})
    rank, epoch, storage = refusal.value.problems
    assert rank == "spec.lora.rank: must be greater than or equal to 1"
    assert epoch.startswith("spec.training.epoch: is not a known field; known are epochs, maxStepsPerEpoch, ")
    assert storage == "spec.storage.shared: set exactly one of claimName and size"


@pytest.mark.parametrize(("version", "kind"), [(None, None), ("v1", "Pod"), ("finetune.dev/v1", "FineTuneJob")])
def test_something_else_than_a_job_is_refused(version: str | None, kind: str | None) -> None:
    with pytest.raises(InvalidJob, match=r"expected apiVersion: finetune\.dev/v1alpha1 and kind: FineTuneJob"):
        FineTuneJob.parse(manifest() | {"apiVersion": version, "kind": kind})


def test_a_job_that_says_nothing_else_has_the_recipe_of_the_proof_of_concept() -> None:
    spec = make_job().spec
    assert (spec.lora.rank, spec.lora.alpha, spec.lora.dropout) == (64, 128, 0.1)
    assert (spec.training.optimizer.learning_rate, spec.training.optimizer.weight_decay) == (2e-4, 0.01)
    assert (spec.training.epochs, spec.training.max_steps_per_epoch) == (3, 1000)
    assert (spec.training.batch_size, spec.training.gradient_accumulation) == (2, 16)
    assert (spec.training.schedule.warmup_steps, spec.training.max_sequence_length) == (100, 4096)
    assert (spec.checkpoint.every_steps, spec.training.log_every_steps) == (500, 10)


def test_a_whole_amount_may_be_written_without_quotes() -> None:
    spec = make_job({"compute": {"resources": {"requests": {"cpu": 16}}}}).spec
    assert spec.compute.resources.requests == {"cpu": "16"}


def test_the_trainer_gets_nothing_that_only_kubernetes_needs() -> None:
    job = make_job({"compute": {"image": "mine:1", "nodes": 2}, "secretName": "tokens"}).trainer_job()
    assert (job.name, job.namespace, job.spec.compute.nodes) == ("calls", "team-a", 2)
    text = job.model_dump_json()
    assert "mine:1" not in text
    assert '"tokens"' not in text


def test_fields_of_the_metadata_that_the_operator_does_not_read_are_passed_over() -> None:
    told = {"managedFields": [], "resourceVersion": "7", "creationTimestamp": "2026-11-23T05:00:00Z"}
    assert FineTuneJob.parse(manifest(**told)) == FineTuneJob.parse(manifest())


# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
AMOUNTS = {
    "a whole number": ("16", "16"),
    "thousandths": ("500m", "0.5"),
    "thousands": ("2k", "2000"),
    "powers of 1024": ("2Ki", "2048"),
    "a fraction": ("1.5Gi", "1610612736"),
    "the largest": ("1Ei", "1152921504606846976"),
}


@pytest.mark.parametrize(("text", "value"), AMOUNTS.values(), ids=AMOUNTS.keys())
def test_an_amount_is_read_as_kubernetes_reads_it(text: str, value: str) -> None:
    assert quantity_value(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1 Gi", "1gi", "1e3"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no Kubernetes quantity"):
        quantity_value(text)
