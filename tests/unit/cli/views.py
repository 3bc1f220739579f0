"""Jobs, pods and nodes for tests of what the command line draws and reckons."""

from datetime import UTC, datetime
from typing import Any

from finetune_cli.jobs import Job, read_job
from tests.factories import manifest
from tests.unit.operator.kubernetes_objects import Body

NOW = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)
CREATED = "2026-11-27T11:46:00Z"


def make_view(status: Body | None = None, spec: Body | None = None, name: str = "calls") -> Job:
    """A FineTuneJob as a command sees it, made 14 minutes ago."""
    body = manifest(spec, name, creationTimestamp=CREATED)
    return read_job(body | {"status": status or {}})


def running_status(step: int = 412, **changes: Any) -> Body:
    return {
        "phase": "Running",
        "reason": "Running",
        "progress": {
            "step": step,
            "totalSteps": 1000,
            "steps": f"{step}/1000",
            "epoch": 1,
            "loss": 0.7312,
            "lossText": "0.731",
            "learningRate": 1.6e-4,
            "tokensPerSecond": 18_300.0,
            "eta": "1h05m",
        },
        "checkpoint": {"step": 400, "time": "2026-11-27T11:57:00Z", "bytes": 2_000_000_000, "path": "jobs/x/step-400"},
        "attempts": [{"number": 1, "started": CREATED, "resumedFromStep": 0}],
        **changes,
    }


def train_pod(index: int, role: str = "node", state: str = "running", **labels: str) -> Body:
    """A training pod of attempt 1, as an Indexed Job makes it."""
    return {
        "metadata": {
            "name": f"calls-a1-{role}-{index}-x7k2p",
            "creationTimestamp": CREATED,
            "labels": {
                "finetune.dev/job": "calls",
                "finetune.dev/stage": "train",
                "finetune.dev/attempt": "1",
                "finetune.dev/role": role,
                "batch.kubernetes.io/job-completion-index": str(index),
                **labels,
            },
        },
        "spec": {"nodeName": f"gpu-{index}", "containers": [{"name": "trainer"}]},
        "status": {"phase": "Running", "containerStatuses": [{"state": {state: {}}}]},
    }


def node(
    name: str, gpus: int = 8, taints: list[Body] | None = None, labels: dict[str, str] | None = None, ready: bool = True
) -> Body:
    """A node with 64 CPUs and 512Gi of memory."""
    amounts = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"taints": taints or []},
        "status": {
            "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
        },
    }


def pod_on(node_name: str, gpus: int = 0, phase: str = "Running", **requests: str) -> Body:
    """Somebody's pod that asks for GPUs."""
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    resources = {"requests": requests, "limits": limits}
    return {"spec": {"nodeName": node_name, "containers": [{"resources": resources}]}, "status": {"phase": phase}}
