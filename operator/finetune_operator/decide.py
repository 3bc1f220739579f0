"""What happens next to a job: one step from what is towards what should be.

Pure and level-triggered: it looks at what is there, never at what happened, so a restart of the operator, a lost event
or a deleted child needs no code of its own. Deciding again on what a decision has led to decides nothing new.

    accepted -> claims, ConfigMap, prepare Job -> Service, training Jobs -> succeeded | failed

A job has one attempt: its gang is `<job>-a1`, and when it fails, the job has failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_operator import status as tell
from finetune_operator.api.status import ConditionStatus, ConditionType, FineTuneJobStatus
from finetune_operator.build.config import build_config_map
from finetune_operator.build.indexed_job import build_train_jobs
from finetune_operator.build.manifest import Manifest
from finetune_operator.build.prepare import build_prepare_job
from finetune_operator.build.service import build_service
from finetune_operator.build.storage import build_claims
from finetune_operator.causes import Trouble
from finetune_operator.names import Annotation, ConditionReason
from finetune_operator.observe import Child, JobSeen, JobState, Observed, PodSeen, first_failure
from finetune_operator.plan import Plan
from finetune_operator.status import Moment
from finetune_operator.store import ObjectKey, object_key
from finetune_trainer.contract.termination import Reason, TrainedReport

ATTEMPT = 1

# Kinds that follow the plan when it changes. A Job cannot be changed, and a claim keeps what is on it.
_CHANGEABLE_KINDS = frozenset({"ConfigMap", "Service"})

# Causes that a watch tells of, when they come and when they go; after any other one looks again.
_WATCHED_REASONS = frozenset(
    {ConditionReason.UNSCHEDULABLE, ConditionReason.IMAGE_PULL_FAILED, ConditionReason.CONTAINER_NOT_CREATED}
)
_LOOK_AGAIN_SECONDS = 5.0
_LOOK_AGAIN_SECONDS_AT_MOST = 300.0

# A pod that lost its peers often says so before the peer that died has said why.
_ROOT_CAUSE_GRACE = timedelta(seconds=15)


@dataclass(frozen=True)
class Decision:
    """What to do now, what to tell, and when to look again."""

    status: FineTuneJobStatus
    apply: tuple[Manifest, ...] = ()
    delete: tuple[Child, ...] = ()
    wake_after_seconds: float | None = None
    """None: the watches tell when something changes."""


def refuse(status: FineTuneJobStatus, problems: Sequence[str], moment: Moment) -> Decision:
    """Decide on a job whose spec cannot be carried out: no object is made, every problem is told."""
    if tell.is_finished(status):
        return Decision(status)
    message = "; ".join(problems) + ". Change the spec and apply it again."
    return Decision(tell.refused(status, moment, Trouble(ConditionReason.INVALID_SPEC, message)))


def decide(plan: Plan, observed: Observed, now: datetime, progress_interval_seconds: float) -> Decision:
    """Decide what happens next to a job.

    Args:
        plan: what the operator will do for the job, and with it the job and what was told of it so far.
        observed: what is there.
        now: the time.
        progress_interval_seconds: how often the progress of a running gang is to be read.
    """
    status, moment = plan.job.status, Moment(now, plan.job.metadata.generation)
    if tell.is_finished(status):
        return Decision(status, delete=_survivors(status, observed))
    status = tell.about(status, plan.model)
    if plan.missing_claims:
        return _wait_for_claims(plan, status, moment)
    status = tell.accepted(status, moment, _acceptance(plan))
    if tell.answer(status, ConditionType.PREPARED) is not ConditionStatus.TRUE:
        return _prepare(plan, observed, status, moment, progress_interval_seconds)
    return _train(plan, observed, status, moment, progress_interval_seconds)


def _wait_for_claims(plan: Plan, status: FineTuneJobStatus, moment: Moment) -> Decision:
    if tell.answer(status, ConditionType.ACCEPTED) is ConditionStatus.TRUE:
        # Pods that hold the claim hold it still; those that do not will say themselves what they wait for.
        return Decision(status, wake_after_seconds=_LOOK_AGAIN_SECONDS)
    missing = ", ".join(plan.missing_claims)
    trouble = Trouble(
        ConditionReason.CLAIM_MISSING,
        f"PersistentVolumeClaim {missing} does not exist in namespace {plan.namespace}. Create it, or change claimName "
        "in spec.storage.",
    )
    return Decision(tell.not_yet_accepted(status, moment, trouble), wake_after_seconds=_LOOK_AGAIN_SECONDS)


def _acceptance(plan: Plan) -> str:
    device = "GPU" if plan.gpus_per_node else "CPU process"
    shape = f"{plan.num_nodes} x {plan.num_processes_per_node} {device}."
    return " ".join((shape, *plan.reasons))


def _prepare(
    plan: Plan, observed: Observed, status: FineTuneJobStatus, moment: Moment, progress_interval_seconds: float
) -> Decision:
    wanted = [*build_claims(plan), build_config_map(plan), build_prepare_job(plan)]
    job = observed.prepare
    obstacle = _obstacle(wanted, observed)
    if obstacle is not None and (job is None or not job.running):
        return Decision(tell.preparing(status, moment, obstacle, runs=False), wake_after_seconds=_LOOK_AGAIN_SECONDS)
    if job is None or (job.state is JobState.ACTIVE and not _failures((job,))):
        waits = None if job is not None and job.running else observed.claims or (job.waits if job else None)
        runs = job is not None and job.running and waits is None
        return Decision(
            tell.preparing(status, moment, waits, runs),
            apply=_to_apply(wanted, observed) if obstacle is None else (),
            wake_after_seconds=None if runs else _wake_while_waiting(status, waits, observed, moment),
        )
    if cause := _cause((job,)):
        return Decision(tell.failed(status, moment, cause))
    if job.pods_lag_behind:
        return Decision(status, wake_after_seconds=_LOOK_AGAIN_SECONDS)
    if not job.pods:
        # Its report went with its pod. Preparing again finds the model and the data in their caches.
        return Decision(status, delete=(job.child,))
    termination = job.pods[0].termination
    if termination is None or termination.prepared is None:
        return Decision(tell.failed(status, moment, _no_report(job.pods[0])))
    status = tell.prepared(status, moment, termination.prepared)
    return _train(plan, observed, status, moment, progress_interval_seconds)


def _train(
    plan: Plan, observed: Observed, status: FineTuneJobStatus, moment: Moment, progress_interval_seconds: float
) -> Decision:
    jobs = build_train_jobs(plan, ATTEMPT)
    wanted = [*build_claims(plan), build_config_map(plan), build_service(plan, ATTEMPT), *jobs]
    gang = observed.gangs.get(ATTEMPT, ())
    if _failures(gang):
        return _fail(observed, gang, status, moment)
    if deleted := _deleted_in_mid_run(jobs, observed, status):
        status = tell.failed(status, moment, deleted)
        return Decision(status, delete=_survivors(status, observed))
    whole = len(gang) == len(jobs)
    if whole and all(job.state is JobState.SUCCEEDED for job in gang):
        if any(job.pods_lag_behind for job in gang):
            return Decision(status, wake_after_seconds=_LOOK_AGAIN_SECONDS)
        return Decision(tell.succeeded(status, moment, _result(gang)))
    obstacle = _obstacle(wanted, observed) or (None if whole else _former_gang(observed))
    apply = _to_apply(wanted, observed) if obstacle is None else ()
    if whole and all(job.running or job.state is JobState.SUCCEEDED for job in gang):
        status = tell.running(status, moment, plan.num_nodes, observed.series)
        return Decision(status, apply, wake_after_seconds=progress_interval_seconds)
    if obstacle is not None:
        return Decision(tell.starting(status, moment, obstacle), wake_after_seconds=_LOOK_AGAIN_SECONDS)
    waits = observed.claims or next((job.waits for job in gang if job.waits is not None), None)
    return Decision(
        tell.starting(status, moment, waits),
        apply,
        wake_after_seconds=_wake_while_waiting(status, waits, observed, moment),
    )


def _fail(observed: Observed, gang: Sequence[JobSeen], status: FineTuneJobStatus, moment: Moment) -> Decision:
    """End the attempt with the cause that explains the others, once it is known."""
    if report := _result(gang):
        # The adapter is there: a worker that stumbles over its own end spoils nothing.
        status = tell.succeeded(status, moment, report)
        return Decision(status, delete=_survivors(status, observed))
    pod = first_failure(gang)
    all_ended = all(job.state is not JobState.ACTIVE and not job.pods_lag_behind for job in gang)
    if pod is not None and pod.failed_by_another and not all_ended:
        known_for = moment.now - (datetime.fromisoformat(pod.ended_at) if pod.ended_at else moment.now)
        if known_for < _ROOT_CAUSE_GRACE:
            return Decision(status, wake_after_seconds=(_ROOT_CAUSE_GRACE - known_for).total_seconds())
    cause = _cause(gang)
    if cause is None:
        return Decision(status, wake_after_seconds=_LOOK_AGAIN_SECONDS)
    status = tell.failed(status, moment, cause)
    return Decision(status, delete=_survivors(status, observed))


def _result(gang: Sequence[JobSeen]) -> TrainedReport | None:
    """Return what rank 0 reported at its end: the leader's Job comes first, and rank 0 is its first pod."""
    termination = gang[0].pods[0].termination if gang[0].pods else None
    return termination.trained if termination is not None else None


def _deleted_in_mid_run(jobs: Sequence[Manifest], observed: Observed, status: FineTuneJobStatus) -> Trouble | None:
    """Tell of a training Job that somebody deleted after the training had begun.

    Before that nothing is lost and it is made again; afterwards a fresh gang would silently start from the first step.
    """
    if tell.answer(status, ConditionType.RUNNING) is not ConditionStatus.TRUE:
        return None
    for job in jobs:
        child = observed.children.get(object_key(job))
        if child is None or child.deleting:
            name = job["metadata"]["name"]
            return Trouble(
                ConditionReason.TRAIN_JOB_DELETED,
                f"Job {name} was deleted while it trained. Checkpoints stay on the shared filesystem; to train again, "
                "delete the FineTuneJob and apply it anew.",
            )
    return None


def _survivors(status: FineTuneJobStatus, observed: Observed) -> tuple[Child, ...]:
    """Return the training Jobs of a finished job that still hold nodes.

    A Job with a pod that failed and ended is kept for its logs; its controller takes the other pods down.
    """
    if not tell.is_finished(status):
        return ()
    return tuple(
        job.child
        for gang in observed.gangs.values()
        for job in gang
        if job.state is JobState.ACTIVE
        and not any(pod.ended and pod.failure is not None for pod in job.pods)
        and not job.child.deleting
    )


def _to_apply(wanted: Sequence[Manifest], observed: Observed) -> tuple[Manifest, ...]:
    """Return what is missing, and what differs from the plan and can be changed."""
    return tuple(manifest for manifest in wanted if _is_due(manifest, observed.children.get(object_key(manifest))))


def _is_due(manifest: Manifest, child: Child | None) -> bool:
    if child is None:
        return True
    if child.deleting or manifest["kind"] not in _CHANGEABLE_KINDS:
        return False
    return bool(child.digest != manifest["metadata"]["annotations"][Annotation.MANIFEST_DIGEST])


def _obstacle(wanted: Sequence[Manifest], observed: Observed) -> Trouble | None:
    """Return why an object cannot be made: the API server refused it, or somebody else's has its name."""
    if observed.obstacle is not None:
        return observed.obstacle
    foreign = observed.foreign(object_key(manifest) for manifest in wanted)
    if foreign is None:
        return None
    return _former_child(foreign.key) if foreign.former else name_taken(foreign.key)


def _former_gang(observed: Observed) -> Trouble | None:
    """Tell of training pods whose Job was deleted and that still end, up to two minutes after it.

    They hold their GPUs, and they have the names under which the pods of the next gang would find each other.
    """
    if not observed.pods_leaving:
        return None
    pod = observed.pods_leaving[0]
    return Trouble(
        ConditionReason.FORMER_JOB_LEAVING,
        f"Pod {pod} of a training that was deleted is still ending; the new one starts as soon as it is gone. If its "
        f"node is lost for good, remove it with `kubectl delete pod {pod} --force`.",
    )


def _former_child(key: ObjectKey) -> Trouble:
    """Tell of an object of a deleted job of this name; to delete a job and apply it anew is how its spec is changed."""
    return Trouble(
        ConditionReason.FORMER_JOB_LEAVING,
        f"The cluster is removing what a deleted job of this name left behind ({key.kind} {key.name}); this job goes "
        "on as soon as it is gone.",
    )


def name_taken(key: ObjectKey) -> Trouble:
    """Tell that an object which this job needs is there and belongs to somebody else."""
    return Trouble(
        ConditionReason.NAME_TAKEN,
        f"{key.kind} {key.name} exists and does not belong to this job. Delete it, or give the job another name.",
    )


def _failures(jobs: Sequence[JobSeen]) -> bool:
    """Whether a Job, or a pod of one, has failed."""
    return any(job.state is JobState.FAILED or first_failure((job,)) is not None for job in jobs)


def _cause(jobs: Sequence[JobSeen]) -> Trouble | None:
    """Return why Jobs failed: what the pod that failed first says, or else the Job itself once its pods are through."""
    pod = first_failure(jobs)
    if pod is not None:
        return pod.failure
    return next((job.own_trouble for job in jobs if job.state is JobState.FAILED and not job.pods_lag_behind), None)


def _no_report(pod: PodSeen) -> Trouble:
    reason = pod.termination.reason if pod.termination else Reason.ERROR
    return Trouble(
        ConditionReason.REPORT_MISSING,
        f"Pod {pod.name} ended with {reason} but left no report of what it prepared. The image does not hold a trainer "
        "of this operator's version; see spec.compute.image.",
    )


def _wake_while_waiting(
    status: FineTuneJobStatus, waits: Trouble | None, observed: Observed, moment: Moment
) -> float | None:
    """Return when to look again at a job that waits: the longer it has waited, the later."""
    if waits is not None and waits.reason in _WATCHED_REASONS and not observed.claims_pending:
        return None
    changed = [datetime.fromisoformat(condition.last_transition_time) for condition in status.conditions]
    waited_seconds = (moment.now - max(changed, default=moment.now)).total_seconds()
    return min(max(waited_seconds / 4, _LOOK_AGAIN_SECONDS), _LOOK_AGAIN_SECONDS_AT_MOST)
