"""The two operators that are measured: what their users apply, and by what one sees how far they are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.operator.scale.fake_cluster import CLAIM, NAMESPACE

Body = dict[str, Any]

NUM_NODES = 2
GPUS_PER_NODE = 8
IMAGE = "finetune-trainer:scale"


@dataclass(frozen=True)
class Milestone:
    """Something that comes to be for every job."""

    name: str
    num_objects: int = 1
    """How many objects make it: a gang has two pods."""


@dataclass(frozen=True)
class Watched:
    """A collection whose events show milestones.

    Attributes:
        path: the collection on the API server.
        metadata_only: whether spec and status are left out, which saves the benchmark the parsing.
        milestone_of: the job and the milestone that an object shows, or None.
    """

    path: str
    metadata_only: bool
    milestone_of: Callable[[Body], tuple[str, str] | None]


@dataclass(frozen=True)
class Subject:
    """A custom resource, and how to see what becomes of it."""

    name: str
    path: str
    manifest: Callable[[str], Body]
    milestones: tuple[Milestone, ...]
    """In their order; the last one is that the job runs."""
    watched: tuple[Watched, ...]
    leftovers: tuple[str, ...]
    """Collections that have to be empty once all jobs are deleted."""


@dataclass
class Sightings:
    """When each object that makes a milestone was first seen, by milestone and job, on the monotonic clock."""

    seen: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def see(self, milestone: str, job: str, object_name: str, now: float) -> None:
        self.seen.setdefault(milestone, {}).setdefault(job, {}).setdefault(object_name, now)

    def reached(self, milestone: Milestone) -> dict[str, float]:
        """Return when each job that has reached a milestone did so."""
        return {
            job: max(objects.values())
            for job, objects in self.seen.get(milestone.name, {}).items()
            if len(objects) >= milestone.num_objects
        }


def fine_tune_jobs() -> Subject:
    """Return this project's operator."""
    return Subject(
        name="finetune-operator",
        path=f"/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs",
        manifest=_fine_tune_job,
        milestones=(
            Milestone("prepare Job"),
            Milestone("train Job"),
            Milestone("training pods", NUM_NODES),
            Milestone("Running"),
        ),
        watched=(
            Watched(f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", True, _stage_of_job),
            Watched(f"/api/v1/namespaces/{NAMESPACE}/pods", True, _training_pod),
            Watched(f"/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs", False, _running_fine_tune_job),
        ),
        leftovers=(*_leftovers("services", "configmaps", "pods"), f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"),
    )


def pytorch_jobs() -> Subject:
    """Return Kubeflow's training-operator."""
    return Subject(
        name="training-operator",
        path=f"/apis/kubeflow.org/v1/namespaces/{NAMESPACE}/pytorchjobs",
        manifest=_pytorch_job,
        milestones=(Milestone("training pods", NUM_NODES), Milestone("Running")),
        watched=(
            Watched(f"/api/v1/namespaces/{NAMESPACE}/pods", True, _pytorch_pod),
            Watched(f"/apis/kubeflow.org/v1/namespaces/{NAMESPACE}/pytorchjobs", False, _running_pytorch_job),
        ),
        leftovers=tuple(_leftovers("services", "pods")),
    )


def _leftovers(*plurals: str) -> Iterator[str]:
    return (f"/api/v1/namespaces/{NAMESPACE}/{plural}" for plural in plurals)


def _fine_tune_job(name: str) -> Body:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"huggingFace": {"repository": "meta-llama/Llama-3.1-8B-Instruct"}},
            "datasets": [
                {
                    "huggingFace": {"repository": "NousResearch/hermes-function-calling-v1", "subset": "func_calling"},
                    "format": "hermes",
                    "maxSamples": 1500,
                }
            ],
            "compute": {"nodes": NUM_NODES, "gpusPerNode": GPUS_PER_NODE},
            "storage": {"shared": {"claimName": CLAIM}},
            "secretName": "fine-tuning-tokens",
        },
    }


def _stage_of_job(body: Body) -> tuple[str, str] | None:
    labels = body["metadata"]["labels"]
    return labels["finetune.dev/job"], f"{labels['finetune.dev/stage']} Job"


def _training_pod(body: Body) -> tuple[str, str] | None:
    labels = body["metadata"]["labels"]
    return (labels["finetune.dev/job"], "training pods") if labels["finetune.dev/stage"] == "train" else None


def _running_fine_tune_job(body: Body) -> tuple[str, str] | None:
    runs = body.get("status", {}).get("phase") == "Running"
    return (body["metadata"]["name"], "Running") if runs else None


def _pytorch_job(name: str) -> Body:
    replica = {
        "restartPolicy": "Never",
        "template": {
            "spec": {
                "containers": [
                    {"name": "pytorch", "image": IMAGE, "resources": {"limits": {"nvidia.com/gpu": str(GPUS_PER_NODE)}}}
                ]
            }
        },
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name},
        "spec": {
            "nprocPerNode": str(GPUS_PER_NODE),
            "pytorchReplicaSpecs": {
                "Master": {"replicas": 1, **replica},
                "Worker": {"replicas": NUM_NODES - 1, **replica},
            },
        },
    }


def _pytorch_pod(body: Body) -> tuple[str, str] | None:
    return body["metadata"]["labels"]["training.kubeflow.org/job-name"], "training pods"


def _running_pytorch_job(body: Body) -> tuple[str, str] | None:
    conditions = body.get("status", {}).get("conditions") or ()
    runs = any(condition["type"] == "Running" and condition["status"] == "True" for condition in conditions)
    return (body["metadata"]["name"], "Running") if runs else None
