"""What a pod says of itself: conditions, the state of its container, and the times in both.

Pure readings of the raw object; what they mean is for `causes` to say.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from finetune_trainer.contract.termination import TerminationMessage, read_termination

Body = Mapping[str, Any]


def termination_of(pod: Body) -> TerminationMessage | None:
    """Return the last word of the pod's container, or None when it runs or left none."""
    terminated = container_state(pod, "terminated")
    return None if terminated is None else read_termination(terminated.get("message"))


def has_ended(pod: Body) -> bool:
    """Return whether a pod has ended for good."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def ended_at(pod: Body) -> str | None:
    """Return when the pod's container ended, in RFC 3339."""
    terminated = container_state(pod, "terminated")
    return None if terminated is None else terminated.get("finishedAt")


def is_ready(pod: Body) -> bool:
    """Return whether the pod's container runs, or has just ended: the pod's own phase follows a moment later."""
    return pod.get("status", {}).get("phase") == "Running" and has_started(pod)


def node_silent_since(pod: Body) -> datetime | None:
    """Return since when the cluster has held the node of a pod for lost, or None while it does not.

    The pod itself tells, so that nobody needs to read nodes: the node controller takes readiness from the pods of a
    node that does not answer, where a kubelet takes it from their containers too. NB: the taint manager's mark
    is no proof, because a node that was tainted by hand answers.
    MarkPodsNotReady in https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/controller/util/node/controller_utils.go
    """
    ready, containers = condition(pod, "Ready"), condition(pod, "ContainersReady")
    if ready is None or containers is None:
        return None
    taken_away = ready.get("status") == "False" and containers.get("status") == "True"
    return condition_time(ready) if taken_away else None


def deletion_asked_at(pod: Body) -> datetime | None:
    """Return when somebody asked for a pod's deletion, or None when nobody did.

    NB: deletionTimestamp is when the pod should be gone, its grace period after that.
    """
    due = pod["metadata"].get("deletionTimestamp")
    if due is None:
        return None
    grace_seconds = pod["metadata"].get("deletionGracePeriodSeconds") or 0
    return datetime.fromisoformat(due) - timedelta(seconds=grace_seconds)


def has_started(pod: Body) -> bool:
    """Return whether a container of a pod was ever seen to run."""
    return any(container_state(pod, state) is not None for state in ("running", "terminated"))


def condition(body: Body, condition_type: str) -> Body | None:
    """Return a condition of an object, whatever its answer, or None when it has not been given."""
    for found in body.get("status", {}).get("conditions") or ():
        if found.get("type") == condition_type:
            return dict(found)
    return None


def condition_time(condition: Body) -> datetime | None:
    """Return when a condition last changed its answer."""
    changed = condition.get("lastTransitionTime")
    return None if changed is None else datetime.fromisoformat(changed)


def container_state(pod: Body, state: str) -> Body | None:
    """Return the `waiting`, `running` or `terminated` state of the container that is in it, or None when none is."""
    for container in pod.get("status", {}).get("containerStatuses") or ():
        found = container.get("state", {}).get(state)
        if found is not None:
            return dict(found)
    return None
