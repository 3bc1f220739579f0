"""Whole manifests of whole jobs, as they are sent to the API server."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from finetune_operator.build import build_all
from finetune_operator.build.manifest import manifests_text
from finetune_operator.plan import ClaimAccessModes
from finetune_operator.settings import Settings
from tests.factories import SETTINGS, make_job_plan
from tests.golden.conftest import Golden

NETWORK = {"network": {"size": "100Gi", "storageClassName": "network-disk"}}


@dataclass(frozen=True)
class Case:
    """A job, and the cluster it comes to."""

    spec: Mapping[str, Any]
    name: str = "calls"
    claims: ClaimAccessModes = field(default_factory=dict)
    settings: Settings = SETTINGS
    labels: Mapping[str, str] = field(default_factory=dict)


CASES = {
    "one-node": Case({}),
    "two-nodes-on-a-shared-filesystem": Case({"compute": {"nodes": 2, "gpusPerNode": 8}}),
    "leader-and-workers-on-a-network-disk": Case({"compute": {"nodes": 4, "gpusPerNode": 8}, "storage": NETWORK}),
    "network-disk-that-many-nodes-mount": Case(
        {"compute": {"nodes": 2}, "storage": {"network": {"size": "100Gi", "accessMode": "ReadWriteMany"}}}
    ),
    "existing-claims": Case(
        {
            "compute": {"nodes": 2},
            "storage": {
                "shared": {"claimName": "models", "size": None, "storageClassName": None},
                "network": {"claimName": "logs"},
            },
        },
        claims={"models": ["ReadWriteMany"], "logs": ["ReadWriteOnce"]},
    ),
    "evaluated-on-one-gpu": Case(
        {
            "compute": {"nodes": 2, "gpusPerNode": 8},
            "evaluation": {"enabled": True, "gate": {"functionAccuracy": ">= 0.85"}},
        }
    ),
    "in-a-queue": Case(
        {"compute": {"nodes": 2, "gpusPerNode": 8}},
        labels={"kueue.x-k8s.io/queue-name": "team-a", "kueue.x-k8s.io/priority-class": "low", "team": "a"},
    ),
    "processors-only": Case(
        {"compute": {"nodes": 2, "device": "cpu", "processesPerNode": 2, "resources": {"requests": {"cpu": 2}}}}
    ),
    "placed-and-secret": Case(
        {
            "compute": {
                "image": "mine:1",
                "imagePullPolicy": "Always",
                "imagePullSecrets": ["registry"],
                "resources": {"requests": {"cpu": "64", "memory": "512Gi"}, "limits": {"memory": "1Ti"}},
                "nodeSelector": {"gpu": "h100"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "priorityClassName": "training",
                "affinity": {
                    "podAntiAffinity": {
                        "preferredDuringSchedulingIgnoredDuringExecution": [
                            {"weight": 10, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname"}}
                        ]
                    }
                },
                "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
            },
            "secretName": "tokens",
        },
        settings=replace(
            SETTINGS,
            hub_endpoint="http://hub.example:8080",
            gpu_memory_bytes=85899345920,
            gpu_resource_name="example.com/gpu",
            prepare_cpu="4",
            prepare_memory="16Gi",
        ),
    ),
    "pytorch-job-on-a-network-disk": Case(
        {"compute": {"backend": "PyTorchJob", "nodes": 4, "gpusPerNode": 8}, "storage": NETWORK}
    ),
    "pytorch-job-of-one-node": Case({"compute": {"backend": "PyTorchJob"}}),
    "claims-deleted-with-the-job": Case({"storage": NETWORK | {"reclaim": "Delete"}}),
    "name-of-63-characters": Case(
        {"compute": {"nodes": 2}, "storage": NETWORK},
        name="a-finetuning-job-with-a-name-as-long-as-the-api-server-takes-it",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_manifests_of_a_job_are_those_that_were_reviewed(name: str, matches_golden: Golden) -> None:
    case = CASES[name]
    plan = make_job_plan(case.spec, case.name, case.claims, case.settings, labels=dict(case.labels))
    comments = "".join(f"# {reason}\n" for reason in plan.reasons)
    matches_golden(name, comments + manifests_text(build_all(plan, attempt=1)))


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in Path(__file__).parent.glob("*.yaml")} == set(CASES)
