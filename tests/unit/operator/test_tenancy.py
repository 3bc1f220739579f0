"""What belongs to a namespace stays in it: no job can name what another one has, and no object is made elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_operator.api.job import FineTuneJob
from finetune_operator.build import build_all
from finetune_operator.errors import InvalidJob
from tests.factories import make_job_plan, manifest

EVERYTHING: dict[str, Any] = {
    "compute": {"nodes": 2, "gpusPerNode": 8, "rdma": True, "imagePullSecrets": ["registry"]},
    "storage": {"network": {"size": "1Gi", "accessMode": "ReadWriteMany"}},
    "secretName": "tokens",
    "evaluation": {"enabled": True},
}
OF_ANOTHER_NAMESPACE = ["team-b/tokens", "team-b:tokens", "../team-b/tokens", "tokens.team-b/x", "/tokens"]
FIELDS: dict[str, Any] = {
    "spec.secretName": lambda name: {"secretName": name},
    "spec.storage.shared.claimName": lambda name: {
        "storage": {"shared": {"claimName": name, "size": None, "storageClassName": None}}
    },
    "spec.storage.network.claimName": lambda name: {"storage": {"network": {"claimName": name}}},
    "spec.compute.imagePullSecrets": lambda name: {"compute": {"imagePullSecrets": [name]}},
}


@pytest.mark.parametrize("name", OF_ANOTHER_NAMESPACE)
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_takes_the_name_of_an_object_and_no_namespace(field: str, name: str) -> None:
    with pytest.raises(InvalidJob, match=field.replace(".", r"\.")):
        FineTuneJob.parse(manifest(FIELDS[field](name)))


def objects(backend: str) -> list[dict[str, Any]]:
    compute = EVERYTHING["compute"] | {"backend": backend}
    return [dict(body) for body in build_all(make_job_plan(EVERYTHING | {"compute": compute}), attempt=1)]


def inside(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every field of an object, however deep, with its name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name, inner
            yield from inside(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from inside(inner)


@pytest.mark.parametrize("backend", ["Job", "PyTorchJob"])
def test_every_object_of_a_job_is_made_in_its_own_namespace(backend: str) -> None:
    assert {body["metadata"]["namespace"] for body in objects(backend)} == {"team-a"}


@pytest.mark.parametrize("backend", ["Job", "PyTorchJob"])
def test_pods_mount_claims_the_job_file_and_memory_and_nothing_of_the_node(backend: str) -> None:
    fields = [pair for body in objects(backend) for pair in inside(body)]
    volumes = [volume for name, value in fields if name == "volumes" for volume in value]
    assert {kind for volume in volumes for kind in volume if kind != "name"} == {
        "configMap",
        "emptyDir",
        "persistentVolumeClaim",
    }
    assert not {"hostPath", "hostNetwork", "hostPID", "hostIPC", "privileged", "subPath"} & {name for name, _ in fields}


@pytest.mark.parametrize("backend", ["Job", "PyTorchJob"])
def test_of_the_secret_two_keys_reach_a_container_by_reference(backend: str) -> None:
    references = [value for body in objects(backend) for name, value in inside(body) if name == "secretKeyRef"]
    assert {(reference["name"], reference["key"]) for reference in references} == {
        ("tokens", "HF_TOKEN"),
        ("tokens", "WANDB_API_KEY"),
    }


@pytest.mark.parametrize("backend", ["Job", "PyTorchJob"])
def test_containers_are_started_without_a_shell(backend: str) -> None:
    containers = [
        container
        for body in objects(backend)
        for name, value in inside(body)
        if name in ("containers", "initContainers")
        for container in value
    ]
    assert containers
    for container in containers:
        assert "command" not in container  # the image's own entry point
        assert container["args"][0] in ("prepare", "train", "evaluate")


@pytest.mark.parametrize("program", ["operator", "trainer"])
def test_an_image_runs_as_a_numbered_user_that_is_not_root_and_without_a_shell(program: str) -> None:
    lines = Path(f"{program}/Dockerfile").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 65532:65532"
    (entry_point,) = [line for line in lines if line.startswith(("ENTRYPOINT", "CMD"))]
    assert entry_point.startswith('ENTRYPOINT ["tini", "--", "python", "-m", ')


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"model": {"huggingFace": None, "path": "jobs/team-b/calls/uid/merged"}}, "spec.model.path"),
        ({"model": {"huggingFace": None, "path": "./jobs//team-b/calls"}}, "spec.model.path"),
        ({"datasets": [{"path": "jobs/team-b/calls/uid/heldout.jsonl", "format": "openai"}]}, "spec.datasets[0].path"),
        ({"datasets": [{"path": "jobs", "format": "openai"}]}, "spec.datasets[0].path"),
    ],
)
def test_a_path_to_another_namespaces_jobs_is_refused_before_anything_is_made(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as refusal:
        make_job_plan(spec)
    (problem,) = refusal.value.problems
    assert problem.startswith(f"{field}: ")
    assert "jobs/team-a/" in problem


def test_what_a_job_of_ones_own_namespace_made_may_be_trained_on() -> None:
    plan = make_job_plan({"model": {"huggingFace": None, "path": "jobs/team-a/calls/uid/merged"}})
    assert plan.model == "jobs/team-a/calls/uid/merged"
