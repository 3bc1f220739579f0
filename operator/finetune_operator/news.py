"""How much what is heard of a job's children matters: most of it says only that things take their course.

Pure. Until a gang runs, a pod was made, a node has taken it, its container is being created, a Job was begun with,
preparing goes on. To look at the job for each of them was more than half of what it cost.

- **Nothing follows** from a pod that goes on as every pod does, and from what comes just before a Job is complete: what
  comes next is heard of as well, and what does not come is looked for by the clock.
- What **can wait** is looked at a moment later, with what is heard until then: that a Job was begun with and its pods
  made, that a stage of one pod goes well, that a pod of a gang runs while another does not yet.
- What ends, fails or goes is looked at **at once**, and so is what makes a gang whole. What a pod that goes could tell
  is never kept waiting: its cause would go with it.
"""

from collections.abc import Iterable
from enum import Enum

from finetune_operator.names import Label, Stage
from finetune_operator.pod_status import Body, condition, container_state, has_started

# Waiting for these two is how every container begins.
_ORDINARY_WAITS = frozenset({None, "ContainerCreating", "PodInitializing"})
# NB: this one comes just before Complete, and nothing is decided by it; Suspended in contrast tells of a queue.
_COMPLETE_FOLLOWS = frozenset({"SuccessCriteriaMet"})
_GOING_WELL = frozenset({None, "Pending", "Running", "Succeeded"})
# These have no say in what comes next as long as they are there.
_KINDS_AT_REST = frozenset({"ConfigMap", "Service"})


class Weight(Enum):
    """How soon a job has to be looked at."""

    NOTHING_FOLLOWS = "nothing follows"
    CAN_WAIT = "can wait"
    AT_ONCE = "at once"


def weigh(body: Body, before: Body | None, others: Iterable[Body]) -> Weight:
    """Return how soon a job has to be looked at for an object that is there and has changed.

    Args:
        body: the object as it is now.
        before: the same as it was known until then; None when it was not.
        others: what else is there of the job.
    """
    if body["metadata"].get("deletionTimestamp") is not None:
        return Weight.AT_ONCE
    if body["kind"] == "Pod":
        return _weigh_pod(body, before, others)
    if body["kind"] in _KINDS_AT_REST:
        return Weight.CAN_WAIT
    if body["kind"] != "Job" or not _conditions(body) <= _COMPLETE_FOLLOWS:
        return Weight.AT_ONCE
    return Weight.NOTHING_FOLLOWS if _conditions(body) and before is not None else Weight.CAN_WAIT


def _weigh_pod(pod: Body, before: Body | None, others: Iterable[Body]) -> Weight:
    if _begins_as_usual(pod):
        # What was told of its not being there, or of what it had waited for, is to be taken back.
        went_on = before is not None and _begins_as_usual(before)
        return Weight.NOTHING_FOLLOWS if went_on else Weight.CAN_WAIT
    phase, stage = pod.get("status", {}).get("phase"), _stage(pod)
    if stage != Stage.TRAIN:
        # That such a stage is done, its Job says; and what it does is told in the same words from its start on.
        return Weight.CAN_WAIT if phase in _GOING_WELL else Weight.AT_ONCE
    if phase in (None, "Pending"):
        return Weight.CAN_WAIT if _waits_as_usual(pod) else Weight.AT_ONCE
    gang_is_yet_to_come = phase == "Running" and any(
        other["kind"] == "Pod" and _stage(other) == stage and _begins_as_usual(other) for other in others
    )
    begins_to_run = before is not None and _begins_as_usual(before)
    return Weight.CAN_WAIT if gang_is_yet_to_come and begins_to_run else Weight.AT_ONCE


def _begins_as_usual(pod: Body) -> bool:
    """Whether a pod is on its way to run, and nobody has said that anything is in its way."""
    status = pod.get("status", {})
    if status.get("phase") not in (None, "Pending"):
        return False
    scheduled = condition(pod, "PodScheduled")
    return (
        _waits_as_usual(pod)
        and (scheduled is None or scheduled.get("status") == "True")
        and all(_goes_well(container.get("state", {})) for container in status.get("initContainerStatuses") or ())
    )


def _goes_well(init_container: Body) -> bool:
    waiting, terminated = init_container.get("waiting") or {}, init_container.get("terminated") or {}
    return waiting.get("reason") in _ORDINARY_WAITS and terminated.get("exitCode", 0) == 0


def _waits_as_usual(pod: Body) -> bool:
    waiting = container_state(pod, "waiting") or {}
    return waiting.get("reason") in _ORDINARY_WAITS and not has_started(pod)


def _stage(pod: Body) -> str | None:
    return (pod["metadata"].get("labels") or {}).get(Label.STAGE)


def _conditions(job: Body) -> frozenset[str]:
    return frozenset(condition["type"] for condition in job.get("status", {}).get("conditions") or ())
