"""FineTuneJobs small enough to run whole in a test, and a pod that looks at what they left on their claims."""

from pathlib import Path
from typing import Any

from tests.e2e.kubectl import Kubectl, Manifest

SHARED_CLASS = "shared-fs"
NETWORK_CLASS = "network-disk"
TINY_MODEL = "finetune-operator/tiny-random-llama"
GATED_MODEL = "finetune-operator/tiny-random-llama-gated"
# Two threads a process for so small a model mostly wait for each other: a step took up to 3 s beside other gangs.
ONE_THREAD = {"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}}


def tiny_job(name: str, **overrides: Any) -> Manifest:
    """A job on a tiny random Llama: two nodes, one CPU process each, both kinds of storage, eight steps.

    `overrides` replaces fields of the spec by their dotted path with `__` for the dot: `training__epochs=2`. None
    removes a field.
    """
    job: Manifest = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"huggingFace": {"repository": TINY_MODEL}},
            "datasets": [
                {
                    "huggingFace": {
                        "repository": "NousResearch/hermes-function-calling-v1",
                        "subset": "func_calling",
                    },
                    "format": "hermes",
                    "maxSamples": 60,
                }
            ],
            "lora": {"rank": 8, "alpha": 16, "dropout": 0.0},
            "training": {
                "epochs": 4,
                "maxStepsPerEpoch": 2,
                "batchSize": 2,
                "gradientAccumulation": 1,
                "maxSequenceLength": 512,
                "optimizer": {"learningRate": 0.02},
                "schedule": {"warmupSteps": 1},
                "logEverySteps": 1,
            },
            "compute": {"nodes": 2, "device": "cpu", "resources": ONE_THREAD},
            "evaluation": {"enabled": False},
            "storage": {
                "shared": {"size": "1Gi", "storageClassName": SHARED_CLASS},
                "network": {"size": "1Gi", "storageClassName": NETWORK_CLASS},
            },
        },
    }
    for path, value in overrides.items():
        *parents, last = path.split("__")
        group = job["spec"]
        for parent in parents:
            group = group.setdefault(parent, {})
        if value is None:
            group.pop(last)
        else:
            group[last] = value
    return job


def start_reader(kubectl: Kubectl, image: str, claims: dict[str, str], name: str = "reader") -> "Reader":
    """Start a pod that mounts claims (mount path -> claim) and waits; it looks at files for a test."""
    volumes = [
        {"name": f"claim-{index}", "persistentVolumeClaim": {"claimName": claim}}
        for index, claim in enumerate(claims.values())
    ]
    mounts = [{"name": f"claim-{index}", "mountPath": path} for index, path in enumerate(claims)]
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "fsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "reader",
                        "image": image,
                        "command": ["sleep", "3600"],
                        "volumeMounts": mounts,
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }
                ],
                "volumes": volumes,
            },
        }
    )
    kubectl.run("wait", "pod", name, "--for=condition=Ready", "--timeout=60s", timeout_seconds=90)
    return Reader(kubectl, name)


class Reader:
    """Looks at files on the claims of a job through a pod."""

    def __init__(self, kubectl: Kubectl, pod: str) -> None:
        self._kubectl = kubectl
        self._pod = pod

    def run(self, *command: str) -> str:
        return self._kubectl.run("exec", self._pod, "--", *command)

    def text(self, path: str) -> str:
        return self.run("cat", path)

    def list_files(self, directory: str) -> list[str]:
        return sorted(self._kubectl.run("exec", self._pod, "--", "find", directory, "-type", "f").splitlines())

    def sha256(self, path: str) -> str:
        return self._kubectl.run("exec", self._pod, "--", "sha256sum", path).split()[0]

    def copy(self, directory: str, to: Path) -> None:
        self._kubectl.run("cp", f"{self._pod}:{directory}", str(to))

    def put(self, file: Path, to: str) -> None:
        self._kubectl.run("exec", self._pod, "--", "mkdir", "-p", str(Path(to).parent))
        self._kubectl.run("cp", str(file), f"{self._pod}:{to}")
