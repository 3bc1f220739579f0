"""Objects as the API server hands them out, in the states that Kubernetes brings them into.

The words are those of a real cluster (v1.34), copied from what kubectl printed.
"""

import json
from typing import Any

from finetune_operator.progress import Heard
from finetune_trainer.contract.progress import CheckpointReport, ProgressReport

Body = dict[str, Any]

CREATED = "2026-11-23T05:00:00Z"
ENDED = "2026-11-23T05:10:00Z"

NO_NODE = (
    "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available: 2 No preemption "
    "victims found for incoming pod."
)
UNBOUND = "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"
NO_CLASS = 'storageclass.storage.k8s.io "no-such" not found'
QUOTA = 'pods "demo-prepare-x" is forbidden: exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2'


def pod(name: str, owner_uid: str = "owner", **status: Any) -> Body:
    """A pod of a Kubernetes Job."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"uid-of-{name}",
            "resourceVersion": "1",
            "creationTimestamp": CREATED,
            "labels": {"finetune.dev/job": "demo", "app.kubernetes.io/managed-by": "finetune-operator"},
            "ownerReferences": [{"kind": "Job", "name": "owner", "uid": owner_uid, "controller": True}],
        },
        "status": {"phase": "Pending", **status},
    }


def pytorch_job(name: str, workers: int = 1, **status: Any) -> Body:
    """A PyTorchJob of an attempt."""
    replicas = {"Master": {"replicas": 1}} | ({"Worker": {"replicas": workers}} if workers else {})
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-of-{name}", "creationTimestamp": CREATED},
        "spec": {"runPolicy": {}, "pytorchReplicaSpecs": replicas},
        "status": status,
    }


def unschedulable(words: str = NO_NODE) -> Body:
    return {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}],
    }


def waiting(reason: str, message: str = "") -> Body:
    return {"phase": "Pending", "containerStatuses": [_container({"waiting": {"reason": reason, "message": message}})]}


def running(ip: str = "10.244.0.7") -> Body:
    return {"phase": "Running", "podIP": ip, "containerStatuses": [_container({"running": {"startedAt": CREATED}})]}


def ended(
    message: str | Body = "", exit_code: int = 0, reason: str | None = None, finished_at: str = ENDED, **status: Any
) -> Body:
    """A container that ended; its last message is text, or a document that becomes JSON."""
    terminated = {
        "exitCode": exit_code,
        "reason": reason or ("Error" if exit_code else "Completed"),
        "finishedAt": finished_at,
        "message": message if isinstance(message, str) else json.dumps(message),
    }
    return {
        "phase": "Failed" if exit_code else "Succeeded",
        "podIP": "10.244.0.7",
        "containerStatuses": [_container({"terminated": terminated})],
        **status,
    }


def disrupted(reason: str, message: str = "") -> Body:
    return {
        "phase": "Running",
        "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}],
    }


def claim(name: str, phase: str = "Bound", access_mode: str = "ReadWriteMany", **metadata: Any) -> Body:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"uid-of-{name}",
            "resourceVersion": "1",
            "creationTimestamp": CREATED,
            **metadata,
        },
        "spec": {"accessModes": [access_mode], "storageClassName": "no-such"},
        "status": {"phase": phase},
    }


def warning(reason: str, message: str, at: str = CREATED) -> Body:
    return {"kind": "Event", "type": "Warning", "reason": reason, "message": message, "lastTimestamp": at}


PREPARED: Body = {
    "model": "someone/tiny@0123456789abcdef0123456789abcdef01234567",
    "modelFamily": "llama",
    "modelPath": "models/someone--tiny@0123456789abcdef0123456789abcdef01234567",
    "dataPath": "datasets/00ff",
    "datasets": [{"name": "someone/rows", "rowsRead": 60, "rowsKept": 58, "dropped": {"no assistant turn": 2}}],
    "parameters": 134_515_008,
    "trainableParameters": 4_884_480,
    "tokens": 51_234,
    "trainedTokens": 20_000,
    "sequences": 100,
    "worldSize": 2,
    "globalBatch": 4,
    "stepsPerEpoch": 10,
    "totalSteps": 30,
    "warmupSteps": 3,
    "precision": "fp32",
    "sharding": "replicate",
    "estimatedMemoryBytes": 1_000_000,
}
TRAINED: Body = {
    "steps": 30,
    "firstLoss": 5.5,
    "finalLoss": 2.25,
    "tokens": 153_702,
    "tokensPerSecond": 1234.5,
    "adapterPath": "jobs/team/demo/uid/adapter",
    "adapterDigest": "sha256:00ff",
}
PREPARED_MESSAGE: Body = {"reason": "Succeeded", "message": "prepared", "prepared": PREPARED}
DONE_MESSAGE: Body = {"reason": "Succeeded", "message": "done"}
TRAINED_MESSAGE: Body = {"reason": "Succeeded", "message": "trained", "trained": TRAINED}
_MEASURE: Body = {"value": 0.9, "low": 0.8, "high": 1.0, "count": 40}
EVALUATION: Body = {
    "rows": 2,
    "turns": 40,
    "callingTurns": 40,
    "base": {"functionAccuracy": _MEASURE | {"value": 0.1}},
    "tuned": {"functionAccuracy": _MEASURE},
    "gateMet": True,
    "seconds": 12.5,
    "reportPath": "jobs/team/demo/uid/evaluation/evaluation.json",
}
EVALUATED_MESSAGE: Body = {
    "reason": "Succeeded",
    "message": "functionAccuracy 0.100 -> 0.900",
    "evaluated": EVALUATION,
    "exported": {"modelCardPath": "jobs/team/demo/uid/adapter/README.md"},
}


def held_out(rows: int) -> Body:
    """What prepare says at its end when it has held out so many rows."""
    datasets = [PREPARED["datasets"][0] | {"rowsHeldOut": rows}]
    return PREPARED_MESSAGE | {"prepared": PREPARED | {"datasets": datasets}}


def report(**changes: Any) -> ProgressReport:
    """What rank 0 tells of a training of 30 steps."""
    return ProgressReport(**{"step": 0, "total_steps": 30, "epoch": 1, **changes})


def heard(**changes: Any) -> Heard:
    """An answer of rank 0 with such a report."""
    return Heard(answers=True, report=report(**changes))


def checkpoint(step: int, time: str = "2026-11-23T05:05:00Z") -> CheckpointReport:
    """A complete checkpoint."""
    path = f"jobs/team/demo/uid/checkpoints/{step:08d}"
    return CheckpointReport(
        step=step,
        time=time,
        path=path,
        bytes=1000,
        digest=f"sha256:{step:064x}",
    )


def failure_message(reason: str, message: str = "what happened, and what to do") -> Body:
    return {"reason": reason, "message": message}


def _container(state: Body) -> Body:
    return {"name": "trainer", "image": "trainer:1", "ready": "running" in state, "restartCount": 0, "state": state}
