"""What the cluster says where Kubeflow's training-operator runs a gang, and a Job never would.

Pure, as `causes` is. The flags are those of v1.9:
https://github.com/kubeflow/trainer/blob/release-1.9/cmd/training-operator.v1/main.go
"""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_operator.causes import Trouble
from finetune_operator.names import ConditionReason
from finetune_trainer.contract.termination import Reason

Body = Mapping[str, Any]

_MANIFESTS = "github.com/kubeflow/training-operator.git/manifests/overlays/standalone?ref=v1.9.4"


def why_backend_is_missing(kind: str) -> Trouble:
    """Return what to do where the cluster does not know the kind of object that is to train."""
    return Trouble(
        ConditionReason.BACKEND_MISSING,
        f"The cluster does not know {kind}s, which spec.compute.backend asks for. To install Kubeflow's "
        f"training-operator: `kubectl apply --server-side -k '{_MANIFESTS}'`; the job then goes on by itself. Or apply "
        "the job anew with spec.compute.backend: Job.",
    )


def why_init_container_waits(pod: Body) -> Trouble | None:
    """Return what keeps the init container of a worker from running, which waits there for the master's name."""
    for container in pod.get("status", {}).get("initContainerStatuses") or ():
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in _IMAGE_REASONS:
            return Trouble(
                ConditionReason.IMAGE_PULL_FAILED,
                f"Pod {pod['metadata']['name']} cannot pull the image {container.get('image')} of its init container "
                f"{container['name']}: {waiting.get('message') or waiting['reason']} An administrator can name another "
                "one by the training-operator's flag --pytorch-init-container-image; the node tries again by itself.",
            )
    return None


def why_init_container_failed(pod: Body) -> Trouble | None:
    """Return why a worker ended before its container ran, or None when it did not."""
    for container in pod.get("status", {}).get("initContainerStatuses") or ():
        exit_code = (container.get("state", {}).get("terminated") or {}).get("exitCode", 0)
        if exit_code != 0:
            where = f"Init container {container['name']} of pod {pod['metadata']['name']}"
            return Trouble(
                Reason.COLLECTIVE_FAILED,
                f"{where} ended with exit code {exit_code}. It waits until the name of the master's pod can be "
                "resolved; where nodes take long to come, an administrator can give it more time by the "
                "training-operator's flag --pytorch-init-container-max-tries.",
            )
    return None


def why_pods_are_missing(pytorch_job: Body, warnings: Sequence[Body]) -> Trouble | None:
    """Return why pods of a PyTorchJob are not made (Pod Security, a quota), or None when nobody said why."""
    refused = [event for event in warnings if event.get("reason") == "FailedCreatePod"]
    if not refused:
        return None
    words = max(refused, key=lambda event: event.get("lastTimestamp") or "").get("message", "").strip()
    return Trouble(
        ConditionReason.PODS_REFUSED,
        f"The cluster refuses pods of PyTorchJob {pytorch_job['metadata']['name']}: {words}. In a namespace of the "
        "restricted Pod Security Standard the training-operator needs a template of its init container that passes it "
        "(docs/operator/back-ends.md); an administrator can raise a quota; it is tried again by itself.",
    )


def why_success_is_none(pytorch_job: Body) -> Trouble:
    """Return what is wrong with a PyTorchJob that calls itself succeeded; see `workload.says_succeeded`."""
    return Trouble(
        ConditionReason.JOB_FAILED,
        f"PyTorchJob {pytorch_job['metadata']['name']} calls itself succeeded because its master has ended, but that "
        "one has reported no adapter, and a worker is gone that had not done its work.",
    )


# https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/kubelet/images/types.go
_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
