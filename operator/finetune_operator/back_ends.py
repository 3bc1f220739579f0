"""What makes the pods of a gang: a Job, or a PyTorchJob. They say the same in different words.

Pure, and the only place where the two are told apart once they are there.
"""

from collections.abc import Mapping
from typing import Any

from finetune_operator import names

Body = Mapping[str, Any]

WORKLOAD_KINDS = frozenset({"Job", names.PYTORCH_JOB_KIND})

# FailureTarget and SuccessCriteriaMet come while pods of a Job still end; Failed and Complete when all have ended.
_FAILED = frozenset({"Failed", "FailureTarget"})
_SUCCEEDED = {"Job": "Complete", names.PYTORCH_JOB_KIND: "Succeeded"}


def is_pytorch_job(workload: Body) -> bool:
    """Return whether it is a PyTorchJob."""
    return bool(workload["kind"] == names.PYTORCH_JOB_KIND)


def num_pods(workload: Body) -> int:
    """Return how many pods it is to have."""
    spec = workload.get("spec", {})
    if is_pytorch_job(workload):
        return sum(replicas.get("replicas", 1) for replicas in spec.get("pytorchReplicaSpecs", {}).values())
    return spec.get("completions") or 1


def asks_to_suspend(workload: Body) -> bool:
    """Return whether a queue (Kueue) has told it to have no pods."""
    spec = workload.get("spec", {})
    return bool((spec.get("runPolicy", {}) if is_pytorch_job(workload) else spec).get("suspend"))


def says_failed(workload: Body) -> bool:
    """Return whether its controller calls it failed."""
    return bool(_true_conditions(workload) & _FAILED)


def says_succeeded(workload: Body) -> bool:
    """Return whether its controller calls it done.

    NB: of a PyTorchJob that means that its master has ended well, whatever its workers do, some of which may not have
    begun. Its replicaStatuses tell no more: every worker that still runs is then counted as succeeded, and deleted.
    https://github.com/kubeflow/trainer/blob/release-1.9/pkg/controller.v1/common/job.go (ReconcileJobs)
    """
    return _SUCCEEDED[workload["kind"]] in _true_conditions(workload)


def _true_conditions(workload: Body) -> frozenset[str]:
    # NB: conditions are a set: a PyTorchJob keeps Created and Restarting beside Failed, in the order of their coming.
    return frozenset(
        condition["type"]
        for condition in workload.get("status", {}).get("conditions") or ()
        if condition.get("status") == "True"
    )
