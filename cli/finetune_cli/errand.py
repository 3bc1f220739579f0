"""A pod that does something on a job's shared filesystem for a command: a verb of the trainer, or holding it open.

Pure: manifests. The pods pass the `restricted` Pod Security Standard and go by themselves when the command is killed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_operator import names
from finetune_trainer.contract.paths import SHARED_MOUNT

Manifest = dict[str, Any]

APP_NAME = "kubectl-finetune"
CONTAINER = "errand"
_USER_ID = 65532  # the trainer image's user; what it has written belongs to it
_SECONDS_KEPT = 300
_READER_SECONDS = 3600


@dataclass(frozen=True)
class Place:
    """With which image, and where, a pod of the trainer runs."""

    image: str
    pull_policy: str = "IfNotPresent"
    pod_fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a pod's spec that decide where it may run, taken from a pod of the operator's."""


# Of an existing pod's spec: what lets another one run beside it.
PLACING_FIELDS = ("imagePullSecrets", "nodeSelector", "tolerations", "affinity", "priorityClassName")


def verb_job(name: str, place: Place, claim: str, arguments: Sequence[str]) -> Manifest:
    """Return a Job that runs a verb of the trainer once, with a claim at its usual place."""
    pod = _pod_spec(place, claim) | {"restartPolicy": "Never"}
    pod["containers"][0]["args"] = list(arguments)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": _labels()},
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": _SECONDS_KEPT,
            "template": {"metadata": {"labels": _labels()}, "spec": pod},
        },
    }


def reader_pod(name: str, place: Place, claim: str) -> Manifest:
    """Return a pod that mounts a claim for reading, and waits to be asked."""
    pod = _pod_spec(place, claim, read_only=True)
    pod |= {"restartPolicy": "Never", "activeDeadlineSeconds": _READER_SECONDS, "terminationGracePeriodSeconds": 0}
    pod["containers"][0]["command"] = ["sleep", str(_READER_SECONDS)]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": _labels()}, "spec": pod}


def _labels() -> dict[str, str]:
    return {names.Label.APP_NAME.value: APP_NAME, names.Label.PART_OF.value: names.OPERATOR}


def _pod_spec(place: Place, claim: str, *, read_only: bool = False) -> Manifest:
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER_ID,
            "runAsGroup": _USER_ID,
            "fsGroup": _USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": place.image,
                "imagePullPolicy": place.pull_policy,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "resources": {
                    "requests": {"cpu": "100m", "memory": "256Mi"},
                    "limits": {"cpu": "1", "memory": "1Gi"},
                },
                "env": [{"name": "HOME", "value": "/tmp"}],
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [
                    {"name": "shared", "mountPath": str(SHARED_MOUNT), "readOnly": read_only},
                    {"name": "scratch", "mountPath": "/tmp"},
                ],
            }
        ],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "scratch", "emptyDir": {}},
        ],
        **place.pod_fields,
    }
