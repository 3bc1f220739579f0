"""What every object has: an owner, labels, and the digest of what was asked for."""

from dataclasses import replace
from typing import Any

import yaml

from finetune_operator.build import build_all, wanted
from finetune_operator.build.config import build_config_map
from finetune_operator.build.manifest import manifests_text
from finetune_trainer.contract.job import parse_job
from tests.factories import SETTINGS, UID, make_job_plan

SPEC: dict[str, Any] = {"compute": {"nodes": 2}, "storage": {"network": {"size": "1Gi"}}, "secretName": "tokens"}
DIGEST = "finetune.dev/manifest-digest"


def key(manifest: dict[str, Any]) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def test_a_job_with_a_network_disk_needs_these_objects_in_this_order() -> None:
    assert [key(manifest) for manifest in build_all(make_job_plan(SPEC), attempt=1)] == [
        ("PersistentVolumeClaim", "calls-shared"),
        ("PersistentVolumeClaim", "calls-network"),
        ("ConfigMap", "calls-config"),
        ("Job", "calls-prepare"),
        ("Service", "calls-a1"),
        ("Job", "calls-a1-leader"),
        ("Job", "calls-a1-worker"),
    ]


def test_everything_goes_with_the_job_except_claims_that_are_kept() -> None:
    for reclaim, kept in (("Retain", {"calls-shared", "calls-network"}), ("Delete", set())):
        manifests = build_all(make_job_plan(SPEC | {"storage": SPEC["storage"] | {"reclaim": reclaim}}), attempt=1)
        owners = {name: found["metadata"].get("ownerReferences") for found in manifests for _, name in [key(found)]}
        assert {name for name, references in owners.items() if references is None} == kept
        for references in owners.values():
            assert references is None or [(found["uid"], found["controller"]) for found in references] == [(UID, True)]


def test_every_object_is_found_by_the_label_of_its_job() -> None:
    for manifest in build_all(make_job_plan(SPEC), attempt=1):
        labels = manifest["metadata"]["labels"]
        assert labels["finetune.dev/job"] == "calls"
        assert labels["app.kubernetes.io/managed-by"] == "finetune-operator"
        assert manifest["metadata"]["namespace"] == "team-a"


def test_no_two_attempts_share_an_object_of_the_gang() -> None:
    plan = make_job_plan(SPEC)
    shared = {key(found) for found in build_all(plan, 1)} & {key(found) for found in build_all(plan, 2)}
    assert {name for _, name in shared} == {"calls-shared", "calls-network", "calls-config", "calls-prepare"}


def test_the_digest_is_the_same_for_the_same_content_and_another_for_another() -> None:
    def digests(**settings: Any) -> list[str]:
        plan = make_job_plan(SPEC, settings=replace(SETTINGS, **settings))
        return [manifest["metadata"]["annotations"][DIGEST] for manifest in build_all(plan, attempt=1)]

    assert digests() == digests()
    assert len(set(digests())) == 7
    changed = [before != after for before, after in zip(digests(), digests(trainer_image="other:2"), strict=True)]
    assert changed == [False, False, False, True, False, True, True]


def test_the_trainer_reads_from_the_config_map_what_the_user_wrote() -> None:
    text = build_config_map(make_job_plan(SPEC | {"lora": {"rank": 8}}))["data"]["job.yaml"]
    job = parse_job(yaml.safe_load(text))
    assert (job.name, job.namespace, job.uid) == ("calls", "team-a", UID)
    assert (job.spec.lora.rank, job.spec.training.epochs, job.spec.compute.nodes) == (8, 3, 2)
    assert "tokens" not in text


def test_a_claim_without_a_class_leaves_the_choice_to_the_cluster() -> None:
    shared, network, *_ = build_all(make_job_plan(SPEC), attempt=1)
    assert shared["spec"]["storageClassName"] == "shared-fs"
    assert "storageClassName" not in network["spec"]
    assert network["spec"]["resources"] == {"requests": {"storage": "1Gi"}}


def test_existing_claims_are_not_made() -> None:
    storage = {"shared": {"claimName": "models", "size": None, "storageClassName": None}}
    kinds = [kind for kind, _ in map(key, build_all(make_job_plan({"storage": storage}), attempt=1))]
    assert kinds == ["ConfigMap", "Job", "Service", "Job"]


def test_an_object_is_looked_for_by_the_name_under_which_it_is_made() -> None:
    for backend in ("Job", "PyTorchJob"):
        plan = make_job_plan(SPEC | {"compute": {"nodes": 2, "backend": backend}}, name="a" * 63)
        objects = [*wanted.shared_by_stages(plan), wanted.prepare_job(plan), *wanted.gang(plan, 12)]
        for item in (*objects, wanted.evaluate_job(plan)):
            assert key(item.build()) == item.key


def test_manifests_as_text_are_the_same_manifests() -> None:
    manifests = build_all(make_job_plan(SPEC), attempt=1)
    assert list(yaml.safe_load_all(manifests_text(manifests))) == manifests
