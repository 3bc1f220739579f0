"""The real cause of trouble, read from what Kubernetes says of a pod, a Job or a claim.

Pure: raw objects in, a reason and a sentence out. The words of the scheduler, the kubelet and the controllers are kept,
because they are what a search engine and an administrator know.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.names import ConditionReason, Label, Stage
from finetune_trainer.contract.termination import Reason, TerminationMessage, read_termination

Body = Mapping[str, Any]

# https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions
_DISRUPTIONS = {
    "PreemptionByScheduler": (ConditionReason.PREEMPTED, "was preempted by a pod of higher priority"),
    "DeletionByTaintManager": (ConditionReason.NODE_LOST, "was removed because its node is not reachable or tainted"),
    "DeletionByPodGC": (ConditionReason.NODE_LOST, "was removed because its node is gone"),
    "EvictionByEvictionAPI": (ConditionReason.EVICTED, "was evicted, as when a node is drained"),
    "TerminationByKubelet": (ConditionReason.EVICTED, "was evicted by its node"),
}
_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CONTAINER_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
# What to do, by what the scheduler says: https://kubernetes.io/docs/concepts/scheduling-eviction/scheduling-framework/
_PLACEMENT_REMEDIES = {
    "affinity/selector": "delete the job and apply it with a spec.compute.nodeSelector that nodes have "
    "(kubectl get nodes --show-labels).",
    "untolerated taint": "delete the job and apply it with spec.compute.tolerations for the nodes' taints.",
}
_TRAIN_REMEDIES = {
    "Insufficient": "delete the job and apply it with a smaller spec.compute (kubectl describe nodes shows, under "
    "Allocatable, what a node has in all).",
    **_PLACEMENT_REMEDIES,
}
_PREPARE_REMEDIES = {
    "Insufficient": "ask whoever installed the operator to lower trainer.prepare in its chart.",
    **_PLACEMENT_REMEDIES,
}
_LOG_TAIL_CHARACTERS = 600
_SIGNAL_BASE = 128  # exit code of a process that a signal killed: this plus the signal's number


@dataclass(frozen=True)
class Trouble:
    """Why something waits or failed: a word, and sentences that end with what to do."""

    reason: str
    message: str


def why_pod_waits(pod: Body, warnings: Sequence[Body]) -> Trouble | None:
    """Return what keeps a pod from running, or None when nothing does.

    Args:
        pod: the pod.
        warnings: Events of type Warning about it, as far as they were asked for.
    """
    name = pod["metadata"]["name"]
    scheduled = _condition(pod, "PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        return _why_no_node_takes_it(pod, scheduled.get("message") or "it gave no reason")
    waiting = _container_state(pod, "waiting")
    if waiting is None:
        return None
    reason, words = waiting.get("reason", ""), waiting.get("message") or waiting.get("reason", "")
    if reason in _IMAGE_REASONS:
        return Trouble(
            ConditionReason.IMAGE_PULL_FAILED,
            f"Pod {name} cannot pull its image: {words} Check the image's name and spec.compute.imagePullSecrets; the "
            "node tries again by itself.",
        )
    if reason in _CONTAINER_REASONS:
        return Trouble(
            ConditionReason.CONTAINER_NOT_CREATED,
            f"Pod {name} cannot start its container ({reason}): {words}. The node tries again by itself once this is "
            "mended.",
        )
    if mount := _newest(event for event in warnings if event.get("reason") in {"FailedMount", "FailedAttachVolume"}):
        return Trouble(
            ConditionReason.VOLUME_NOT_MOUNTED,
            f"Pod {name} waits for a volume: {mount.get('message', '').strip()} The node tries again by itself.",
        )
    return None


def why_pod_failed(pod: Body) -> Trouble | None:
    """Return why a pod failed, or is being taken away, or None when neither is so."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if status.get("phase") == "Succeeded":
        return None  # NB: a node that is lost or drained takes pods away that have done their work, too.
    disruption = _condition(pod, "DisruptionTarget")
    if disruption is not None and disruption.get("status") == "True":
        reason, words = _DISRUPTIONS.get(disruption.get("reason", ""), (ConditionReason.EVICTED, "was disrupted"))
        return Trouble(reason, _sentence(f"Pod {name} {words}", disruption.get("message")))
    if status.get("phase") != "Failed":
        return None
    if status.get("reason") == "Evicted":
        return Trouble(ConditionReason.EVICTED, _sentence(f"Pod {name} was evicted by its node", status.get("message")))
    terminated = _container_state(pod, "terminated")
    if terminated is None:
        words = status.get("message") or status.get("reason") or "no reason was given"
        return Trouble(ConditionReason.POD_REJECTED, f"Pod {name} did not start on its node: {words}")
    return _why_container_failed(name, terminated)


def why_job_failed(job: Body) -> Trouble:
    """Return what a failed Job says of itself, for when no pod of it is there to ask."""
    name = job["metadata"]["name"]
    failed = _condition(job, "Failed") or _condition(job, "FailureTarget") or {}
    words = failed.get("message") or failed.get("reason") or "no reason was given"
    return Trouble(
        ConditionReason.JOB_FAILED,
        f"Job {name} failed and the pod that could tell why is gone, deleted by somebody or with its node: {words}.",
    )


def why_job_has_no_pods(job: Body, warnings: Sequence[Body]) -> Trouble | None:
    """Return why the pods of a Job are not made (Pod Security, a quota), or None when nothing was said about it."""
    refused = _newest(event for event in warnings if event.get("reason") == "FailedCreate")
    if refused is None:
        return None
    return Trouble(
        ConditionReason.PODS_REFUSED,
        f"The cluster refuses the pods of Job {job['metadata']['name']}: {refused.get('message', '').strip()}. "
        "An administrator of the namespace can raise its quota or change its policy; it is tried again by itself.",
    )


def why_claim_is_pending(claim: Body, warnings: Sequence[Body]) -> Trouble | None:
    """Return why a claim is not bound, or None when it is bound or merely waits for its first pod."""
    if not is_pending_claim(claim):
        return None
    name, spec = claim["metadata"]["name"], claim.get("spec", {})
    said = _newest(warnings)
    if said is None:
        return None
    words = said.get("message", "").strip()
    if "storageclass" in words.lower() and "not found" in words.lower():
        return Trouble(
            ConditionReason.STORAGE_CLASS_MISSING,
            f"Claim {name} names the storage class {spec.get('storageClassName')!r}, which the cluster does not have "
            f"({words}). See `kubectl get storageclass`; delete the job and the claim, and name one of those in "
            "spec.storage.",
        )
    return Trouble(
        ConditionReason.CLAIM_PENDING,
        f"Claim {name} is not bound: {words} The job goes on as soon as it is.",
    )


def is_pending_claim(body: Body) -> bool:
    """Return whether an object is a claim that is not bound."""
    phase = body.get("status", {}).get("phase") or "Pending"
    return bool(body["kind"] == "PersistentVolumeClaim" and phase == "Pending")


def why_node_is_silent(pod: Body) -> Trouble | None:
    """Return that the node of a pod does not answer, or None while it does."""
    since = node_silent_since(pod)
    if since is None:
        return None
    node = pod.get("spec", {}).get("nodeName")
    return Trouble(
        ConditionReason.NODE_LOST,
        f"Node {node}, on which pod {pod['metadata']['name']} runs, has not answered since {since:%H:%M:%S} UTC.",
    )


def node_silent_since(pod: Body) -> datetime | None:
    """Return since when the cluster has held the node of a pod for lost, or None while it does not.

    The pod itself tells, so that nobody needs to read nodes: the node controller takes readiness from the pods of a
    node that does not answer, where a kubelet takes it from their containers too. NB: the taint manager's mark
    is no proof, because a node that was tainted by hand answers.
    MarkPodsNotReady in https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/controller/util/node/controller_utils.go
    """
    ready, containers = _condition(pod, "Ready"), _condition(pod, "ContainersReady")
    if ready is None or containers is None:
        return None
    taken_away = ready.get("status") == "False" and containers.get("status") == "True"
    return _time(ready) if taken_away else None


def deletion_asked_at(pod: Body) -> datetime | None:
    """Return when somebody asked for a pod's deletion, or None when nobody did.

    NB: deletionTimestamp is when the pod should be gone, its grace period after that.
    """
    due = pod["metadata"].get("deletionTimestamp")
    if due is None:
        return None
    grace_seconds = pod["metadata"].get("deletionGracePeriodSeconds") or 0
    return datetime.fromisoformat(due) - timedelta(seconds=grace_seconds)


def termination_of(pod: Body) -> TerminationMessage | None:
    """Return the last word of the pod's container, or None when it runs or left none."""
    terminated = _container_state(pod, "terminated")
    return None if terminated is None else read_termination(terminated.get("message"))


def has_ended(pod: Body) -> bool:
    """Return whether a pod has ended for good."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def ended_at(pod: Body) -> str | None:
    """Return when the pod's container ended, in RFC 3339."""
    terminated = _container_state(pod, "terminated")
    return None if terminated is None else terminated.get("finishedAt")


def is_ready(pod: Body) -> bool:
    """Return whether the pod's container runs, or has just ended: the pod's own phase follows a moment later."""
    started = any(_container_state(pod, state) is not None for state in ("running", "terminated"))
    return pod.get("status", {}).get("phase") == "Running" and started


def _why_no_node_takes_it(pod: Body, words: str) -> Trouble:
    what = f"No node of the cluster can take pod {pod['metadata']['name']} now{_asked_for(pod)}"
    advice = "Nothing is lost by waiting: it starts by itself as soon as a node can take it."
    # What the operator asks for on behalf of prepare stands in the chart and not in the job.
    preparing = pod["metadata"].get("labels", {}).get(Label.STAGE) == Stage.PREPARE
    remedies = _PREPARE_REMEDIES if preparing else _TRAIN_REMEDIES
    if remedy := " ".join(text for phrase, text in remedies.items() if phrase in words):
        advice += f" If none ever will, {remedy}"
    return Trouble(
        ConditionReason.UNSCHEDULABLE, f"{what}. The scheduler says: {words.strip().removesuffix('.')}. {advice}"
    )


def _asked_for(pod: Body) -> str:
    """Return what a pod asks of one node, GPUs first; nothing when it asks for nothing in particular."""
    amounts: dict[str, str] = {}
    for container in pod.get("spec", {}).get("containers") or ():
        resources = container.get("resources") or {}
        amounts |= {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    asked = sorted(amounts.items(), key=lambda item: ("/" not in item[0], item[0]))
    return f", which asks for {', '.join(f'{amount} {name}' for name, amount in asked)}" if asked else ""


def _why_container_failed(pod_name: str, terminated: Body) -> Trouble:
    exit_code = terminated.get("exitCode", 0)
    if terminated.get("reason") == "OOMKilled":
        return Trouble(
            ConditionReason.OOM_KILLED,
            f"Pod {pod_name} used more memory than its limit and was killed. Raise memory in "
            "spec.compute.resources, or the operator's prepare memory when it was preparing.",
        )
    termination = read_termination(terminated.get("message"))
    if termination is not None:
        return Trouble(termination.reason, termination.message)
    if exit_code > _SIGNAL_BASE:
        return Trouble(Reason.KILLED, f"Pod {pod_name} was killed by signal {exit_code - _SIGNAL_BASE}.")
    tail = (terminated.get("message") or "").strip()[-_LOG_TAIL_CHARACTERS:]
    words = f"{terminated.get('reason') or 'Error'}, exit code {exit_code}"
    return Trouble(Reason.ERROR, _sentence(f"Pod {pod_name} ended without a report ({words})", tail))


def _condition(body: Body, condition_type: str) -> Body | None:
    for condition in body.get("status", {}).get("conditions") or ():
        if condition.get("type") == condition_type:
            return dict(condition)
    return None


def _time(condition: Body) -> datetime | None:
    changed = condition.get("lastTransitionTime")
    return None if changed is None else datetime.fromisoformat(changed)


def _container_state(pod: Body, state: str) -> Body | None:
    for container in pod.get("status", {}).get("containerStatuses") or ():
        found = container.get("state", {}).get(state)
        if found is not None:
            return dict(found)
    return None


def _newest(events: Iterable[Body]) -> Body | None:
    return max(events, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "", default=None)


def _sentence(what: str, words: str | None) -> str:
    return f"{what}: {words}" if words else f"{what}."
