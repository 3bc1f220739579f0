"""Which children to make, what stands in their way, and which of them are in the way of others."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.build import Manifest, Wanted
from finetune_operator.causes import Trouble
from finetune_operator.decide.decision import LOOK_AGAIN_SECONDS, Look
from finetune_operator.names import ConditionReason
from finetune_operator.observe import Observed
from finetune_operator.store import ObjectKey
from finetune_operator.workloads import Child, JobSeen, JobState

# Kinds that follow the plan when it changes. A Job cannot be changed, and a claim keeps what is on it.
_CHANGEABLE_KINDS = frozenset({"ConfigMap", "Service"})

# Causes that a watch tells of, when they come and when they go; after any other one looks again.
_WATCHED_REASONS = frozenset(
    {
        ConditionReason.UNSCHEDULABLE,
        ConditionReason.IMAGE_PULL_FAILED,
        ConditionReason.CONTAINER_NOT_CREATED,
        ConditionReason.QUEUED,
    }
)
_LOOK_AGAIN_SECONDS_AT_MOST = 300.0


def due(wanted: Iterable[Wanted], observed: Observed) -> tuple[Manifest, ...]:
    """Return what is missing, and what differs from the plan and can be changed."""
    manifests = (_manifest_if_due(item, observed.children.get(item.key)) for item in wanted)
    return tuple(manifest for manifest in manifests if manifest is not None)


def _manifest_if_due(item: Wanted, child: Child | None) -> Manifest | None:
    if child is None:
        return item.build()
    if child.deleting or item.key.kind not in _CHANGEABLE_KINDS:
        return None
    return item.build() if child.digest != item.digest() else None


def obstacle(wanted: Iterable[Wanted], observed: Observed) -> Trouble | None:
    """Return why an object cannot be made: the API server refused it, or somebody else's has its name."""
    if observed.obstacle is not None:
        return observed.obstacle
    foreign = observed.foreign(item.key for item in wanted)
    if foreign is None:
        return None
    return _former_child(foreign.key) if foreign.former else name_taken(foreign.key)


def name_taken(key: ObjectKey) -> Trouble:
    """Tell that an object which this job needs is there and belongs to somebody else."""
    return Trouble(
        ConditionReason.NAME_TAKEN,
        f"{key.kind} {key.name} exists and does not belong to this job. Delete it, or give the job another name.",
    )


def _former_child(key: ObjectKey) -> Trouble:
    """Tell of an object of a deleted job of this name; to delete a job and apply it anew is how its spec is changed."""
    return Trouble(
        ConditionReason.FORMER_JOB_LEAVING,
        f"The cluster is removing what a deleted job of this name left behind ({key.kind} {key.name}); this job goes "
        "on as soon as it is gone.",
    )


def former_pods(observed: Observed, attempt: int) -> Trouble | None:
    """Tell of training pods, other than those of an attempt, that still end.

    They hold their GPUs, and pods of a deleted job of this name have the names under which those of the attempt would
    find each other.
    """
    pods = observed.in_the_way(attempt)
    if not pods:
        return None
    name = pods[0].name
    return Trouble(
        ConditionReason.FORMER_JOB_LEAVING,
        f"Pod {name} of a training that was stopped is still ending; the next one starts as soon as it is gone. If its "
        f"node is lost for good, remove it with `kubectl delete pod {name} --force`.",
    )


def former_gangs(observed: Observed, wanted: Iterable[Wanted]) -> tuple[Child, ...]:
    """Return the training Jobs and the Services of every attempt but the one whose objects these are."""
    own = {item.key for item in wanted}
    jobs = [job.child for gang in observed.gangs.values() for job in gang if job.child.key not in own]
    services = [
        child for key, child in observed.children.items() if key.kind == "Service" and child.ours and key not in own
    ]
    return (*jobs, *services)


def not_yet_leaving(children: Sequence[Child]) -> tuple[Child, ...]:
    """Return those whose deletion was not asked for yet."""
    return tuple(child for child in children if not child.deleting)


def holding_nodes(observed: Observed) -> tuple[Child, ...]:
    """Return the training Jobs of a finished job that still hold nodes.

    A Job with a pod that failed and ended is kept for its logs; its controller takes the other pods down.
    """
    return not_yet_leaving([job.child for gang in observed.gangs.values() for job in gang if _holds_nodes(job)])


def _holds_nodes(job: JobSeen) -> bool:
    return job.state is JobState.ACTIVE and not any(pod.ended and pod.failure is not None for pod in job.pods)


def abandoned_pods(look: Look) -> tuple[Child, ...]:
    """Return the pods that were told to go and have outstayed their time on nodes that do not answer."""
    allowed = timedelta(seconds=look.timing.force_delete_seconds)
    preparing = look.observed.prepare.pods if look.observed.prepare is not None else ()
    return tuple(
        pod.child
        for pod in (*preparing, *look.observed.training_pods)
        if pod.unanswered_since is not None and look.now >= pod.unanswered_since + allowed
    )


def wake_while_waiting(
    status: FineTuneJobStatus, waits: Trouble | None, jobs: Sequence[JobSeen], look: Look
) -> float | None:
    """Return when to look again at a job that waits for some of its Jobs: after as long as it has waited so far.

    So a reason is told after twice the time at most that it took to come, and among thousands of jobs whose pods come
    after minutes each is looked at some seven times meanwhile.
    """
    # Nobody can say yet why a Job has no pods that its controller has not begun with, and a watch tells when it begins.
    is_told = waits.reason in _WATCHED_REASONS if waits is not None else not all(job.taken_up for job in jobs)
    if is_told and not look.observed.claims_pending:
        return None
    changed = [datetime.fromisoformat(condition.last_transition_time) for condition in status.conditions]
    waited_seconds = (look.now - max(changed, default=look.now)).total_seconds()
    return min(max(waited_seconds, LOOK_AGAIN_SECONDS), _LOOK_AGAIN_SECONDS_AT_MOST)
