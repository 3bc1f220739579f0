"""Which news of a job's children can wait a moment, because nothing follows from them.

Pure. Until a gang runs, most of what is heard says only that things take their course: a pod was made, a node has taken
it, a Job was begun with, preparing goes on. To look at the job for each of them was more than half of what it cost.
They are looked at together, or with the news that something does follow from.

What a pod that goes could tell is never kept waiting, nor what ends or fails: its cause would go with it.
"""

from finetune_operator.names import Label, Stage
from finetune_operator.pod_status import Body, container_state, has_started

# Waiting for these two is how every container begins.
_ORDINARY_WAITS = frozenset({None, "ContainerCreating", "PodInitializing"})
# NB: this one comes just before Complete, and nothing is decided by it; Suspended in contrast tells of a queue.
_PASSING_CONDITIONS = frozenset({"SuccessCriteriaMet"})
_GOING_WELL = frozenset({None, "Pending", "Running", "Succeeded"})


def can_wait(body: Body) -> bool:
    """Return whether the news that an object is as it is now can wait a moment."""
    if body["metadata"].get("deletionTimestamp") is not None:
        return False
    if body["kind"] == "Pod":
        return _pod_can_wait(body)
    return bool(body["kind"] == "Job" and _conditions(body) <= _PASSING_CONDITIONS)


def _pod_can_wait(pod: Body) -> bool:
    phase = pod.get("status", {}).get("phase")
    if pod["metadata"].get("labels", {}).get(Label.STAGE) != Stage.TRAIN:
        # That such a stage is done, its Job says; and what it does is told in the same words from its start on.
        return phase in _GOING_WELL
    return phase in (None, "Pending") and _starts_as_usual(pod)


def _starts_as_usual(pod: Body) -> bool:
    waiting = container_state(pod, "waiting") or {}
    return waiting.get("reason") in _ORDINARY_WAITS and not has_started(pod)


def _conditions(job: Body) -> frozenset[str]:
    return frozenset(condition["type"] for condition in job.get("status", {}).get("conditions") or ())
