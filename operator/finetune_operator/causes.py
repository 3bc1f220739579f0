"""The real cause of trouble, read from what Kubernetes says of a pod, a Job or a claim.

Pure: raw objects in, a reason and a sentence out. The words of the scheduler, the kubelet and the controllers are kept,
because they are what a search engine and an administrator know.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune_operator.names import ConditionReason, Label, Stage
from finetune_operator.pod_status import condition, container_state, node_silent_since, termination_of
from finetune_trainer.contract.termination import Reason

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
# What the kubelet says of a container that it does not find any more, and containerd of one that was gone when its node
# had restarted (its unknownExitReason). ContainerReasonStatusUnknown:
# https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/kubelet/container/runtime.go
_LOST_CONTAINERS = frozenset({"ContainerStatusUnknown", "Unknown"})
# What the trainer says when something else made it end, of which Kubernetes may know more.
_CONSEQUENCES = frozenset({Reason.COLLECTIVE_FAILED, Reason.TERMINATED, Reason.KILLED})
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
    scheduled = condition(pod, "PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        return _why_no_node_takes_it(pod, scheduled.get("message") or "it gave no reason")
    waiting = container_state(pod, "waiting")
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
    """Return why a pod failed, or is being taken away, or None when neither is so.

    The message ends with what was seen of the pod: its node, its exit code, the time.
    """
    if pod.get("status", {}).get("phase") == "Succeeded":
        return None  # NB: a node that is lost or drained takes pods away that have done their work, too.
    trouble = _why_it_ended_itself(pod) or _why_it_is_taken_away(pod) or _why_it_ended(pod)
    return None if trouble is None else replace(trouble, message=f"{trouble.message.rstrip('.')}. {_seen_of(pod)}")


def _why_it_ended_itself(pod: Body) -> Trouble | None:
    """Return the reason that the trainer gives, unless that is only what a pod says which is being taken away."""
    termination = termination_of(pod)
    if termination is None or termination.reason in _CONSEQUENCES or not _has_failed(pod):
        return None
    return Trouble(termination.reason, termination.message)


def _why_it_is_taken_away(pod: Body) -> Trouble | None:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    disruption = condition(pod, "DisruptionTarget")
    if disruption is not None and disruption.get("status") == "True":
        reason, words = _DISRUPTIONS.get(disruption.get("reason", ""), (ConditionReason.EVICTED, "was disrupted"))
        said = status.get("message") or disruption.get("message")
        return Trouble(reason, _sentence(f"Pod {name} {words}", said))
    if _has_failed(pod) and status.get("reason") == "Evicted":
        return Trouble(ConditionReason.EVICTED, _sentence(f"Pod {name} was evicted by its node", status.get("message")))
    return None


def _why_it_ended(pod: Body) -> Trouble | None:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if not _has_failed(pod):
        return None
    terminated = container_state(pod, "terminated")
    if terminated is None:
        words = status.get("message") or status.get("reason") or "no reason was given"
        return Trouble(ConditionReason.POD_REJECTED, f"Pod {name} did not start on its node: {words}")
    return _why_container_failed(pod, terminated)


def _has_failed(pod: Body) -> bool:
    return bool(pod.get("status", {}).get("phase") == "Failed")


def _seen_of(pod: Body) -> str:
    """Return the evidence: which pod, where, how it ended, and when."""
    terminated = container_state(pod, "terminated")
    seen = [f"pod {pod['metadata']['name']}", f"node {pod.get('spec', {}).get('nodeName') or 'none'}"]
    if terminated is not None:
        seen += [f"exit code {terminated.get('exitCode')} ({terminated.get('reason') or 'no reason'})"]
    disruption = condition(pod, "DisruptionTarget")
    if disruption is not None and disruption.get("status") == "True":
        seen += [f"condition DisruptionTarget {disruption.get('reason')}"]
    when = (terminated or {}).get("finishedAt") or (disruption or {}).get("lastTransitionTime")
    return f"Seen: {', '.join(seen)}{f', at {when}' if when else ''}."


def why_job_failed(job: Body) -> Trouble:
    """Return what a failed Job says of itself, for when no pod of it is there to ask."""
    name = job["metadata"]["name"]
    if job.get("spec", {}).get("suspend"):
        return Trouble(
            ConditionReason.PREEMPTED,
            f"Job {name} was suspended while it trained, as a queue does that gives its place to another one, and a "
            "pod of it failed before it was told to stop.",
        )
    failed = condition(job, "Failed") or condition(job, "FailureTarget") or {}
    words = failed.get("message") or failed.get("reason") or "no reason was given"
    return Trouble(
        ConditionReason.JOB_FAILED,
        f"{job['kind']} {name} failed and the pod that could tell why is gone, deleted by somebody or with its node: "
        f"{words}.",
    )


def why_job_is_queued(job: Body) -> Trouble:
    """Return why a suspended Job has no pods: it waits in a queue, or somebody suspended it by hand."""
    metadata = job["metadata"]
    queue = metadata.get("labels", {}).get(Label.QUEUE)
    who = f"Queue {queue} has" if queue is not None else "Somebody other than the operator has"
    how = f"`kubectl describe localqueue {queue}` tells what is before it." if queue is not None else "See its Events."
    return Trouble(
        ConditionReason.QUEUED,
        f"{who} suspended Job {metadata['name']}. It starts by itself as soon as it is let go on, from its last "
        f"checkpoint if there is one; nothing is held meanwhile. {how}",
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


def _why_container_failed(pod: Body, terminated: Body) -> Trouble:
    name, exit_code, reason = pod["metadata"]["name"], terminated.get("exitCode", 0), terminated.get("reason")
    if reason == "OOMKilled":
        return Trouble(
            ConditionReason.OOM_KILLED,
            f"Pod {name} used more memory than its limit and was killed. Raise memory in "
            "spec.compute.resources, or the operator's prepare memory when it was preparing.",
        )
    if reason in _LOST_CONTAINERS:
        return Trouble(
            ConditionReason.NODE_LOST,
            f"The node of pod {name} lost its container, as when it restarts: {terminated.get('message') or reason}",
        )
    termination = termination_of(pod)
    if termination is not None:
        return Trouble(termination.reason, termination.message)
    if exit_code > _SIGNAL_BASE:
        return Trouble(Reason.KILLED, f"Pod {name} was killed by signal {exit_code - _SIGNAL_BASE}.")
    tail = (terminated.get("message") or "").strip()[-_LOG_TAIL_CHARACTERS:]
    return Trouble(Reason.ERROR, _sentence(f"Pod {name} ended without a report", tail))


def _newest(events: Iterable[Body]) -> Body | None:
    return max(events, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "", default=None)


def _sentence(what: str, words: str | None) -> str:
    return f"{what}: {words}" if words else f"{what}."
