"""From the raw children of a job to what is: which of them are there, how far they are, and what troubles them.

Pure: what the API server said in, frozen data out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from finetune_operator import causes, names
from finetune_operator.causes import Trouble
from finetune_operator.names import ConditionReason, Label, Stage
from finetune_operator.store import Body, ObjectKey, object_key
from finetune_trainer.contract.termination import Reason, TerminationMessage

WarningsByObject = Mapping[ObjectKey, Sequence[Body]]

# The scheduler tries again by itself while a claim is being bound or a node is being freed: no news for some seconds.
_ORDINARY_SCHEDULING = timedelta(seconds=4)

# How long a thing may take before its Events are asked for.
_ORDINARY_START = timedelta(seconds=3)
_ORDINARY_MOUNT = timedelta(seconds=20)

# What a pod says when another pod of the gang went first.
_CONSEQUENCES = frozenset({Reason.COLLECTIVE_FAILED, Reason.TERMINATED})


class JobState(StrEnum):
    """Where a Kubernetes Job stands."""

    ACTIVE = "active"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True)
class Child:
    """An object with the name of one of ours."""

    key: ObjectKey
    uid: str
    digest: str | None
    """Digest of the manifest that it was made from."""
    ours: bool
    """Whether this job owns it. A claim counts as ours when it was made for a job of this name and kept."""
    former: bool
    """Whether a deleted FineTuneJob owned it, as far as names tell: the garbage collector is about to take it."""
    deleting: bool


@dataclass(frozen=True)
class PodSeen:
    """A pod of a Kubernetes Job."""

    child: Child
    attempt: int
    """Attempt that it belongs to; 0 when it prepares."""
    node: str | None
    """Where it was put; None while no node has taken it."""
    ip: str | None
    ready: bool
    """Whether its container runs."""
    ended: bool
    """Whether it has ended for good. A pod on a lost node has failed without having ended."""
    ended_at: str | None
    termination: TerminationMessage | None
    """The container's last word, when it ended and left one."""
    waits: Trouble | None
    failure: Trouble | None
    node_silent: Trouble | None
    """That its node does not answer. No failure yet: the node may come back, and the pod may be running on it."""
    unanswered_since: datetime | None
    """Since when it has been known that its deletion was asked for and that no kubelet answers to carry it out."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.child.key.name

    @property
    def failed_by_another(self) -> bool:
        """Whether it failed because another pod of its gang did."""
        return self.failure is not None and self.failure.reason in _CONSEQUENCES


@dataclass(frozen=True)
class JobSeen:
    """A Kubernetes Job and its pods."""

    child: Child
    state: JobState
    num_pods: int
    """Pods that it is to have."""
    pods: tuple[PodSeen, ...]
    """Those that it has, by name."""
    own_trouble: Trouble | None
    """What it says of itself: its pods are refused, or it failed and no pod tells why."""
    suspended: bool = False
    """Whether a queue (Kueue) holds it back, or has taken its place away: it has no pods, or they are leaving."""

    @property
    def waits(self) -> Trouble | None:
        """What keeps its pods from running."""
        if self.state is not JobState.ACTIVE:
            return None
        return next((pod.waits for pod in self.pods if pod.waits is not None), self.own_trouble)

    @property
    def running(self) -> bool:
        """Whether every pod that it is to have runs, or has done its work."""
        return sum(pod.ready or pod.ended for pod in self.pods) >= self.num_pods

    @property
    def pods_lag_behind(self) -> bool:
        """Whether it has ended and a pod of it was not yet seen to end: pods and Jobs are watched apart."""
        return self.state is not JobState.ACTIVE and not all(pod.ended for pod in self.pods)


@dataclass(frozen=True)
class Observed:
    """What is there of a job."""

    children: Mapping[ObjectKey, Child]
    prepare: JobSeen | None
    gangs: Mapping[int, tuple[JobSeen, ...]]
    """The training Jobs of each attempt, by name: the leader's comes before the workers'."""
    claims: Trouble | None
    """Why a claim is not bound."""
    claims_pending: bool = False
    """Whether a claim is not bound, for whatever reason: a usual one is that its first pod is yet to come."""
    series: Mapping[str, float] | None = None
    """What rank 0's exporter says, by series name, when it was asked and answered."""
    obstacle: Trouble | None = None
    """Why the API server would not make a child."""
    pods_leaving: tuple[str, ...] = ()
    """Training pods that have not ended and whose Job is gone, by name."""
    training_pods: tuple[PodSeen, ...] = ()
    """All training pods that have not ended, of whichever attempt and of a former job too, by name."""

    def in_the_way(self, attempt: int) -> tuple[PodSeen, ...]:
        """Return the training pods that have to be gone before an attempt may start: all that are not its own."""
        own = {pod.child.uid for job in self.gangs.get(attempt, ()) for pod in job.pods}
        return tuple(pod for pod in self.training_pods if pod.child.uid not in own)

    @property
    def unanswered_pods(self) -> tuple[PodSeen, ...]:
        """The training pods that only force takes away, because their kubelets are dead; see `unanswered_since`."""
        return tuple(pod for pod in self.training_pods if pod.unanswered_since is not None)

    def foreign(self, keys: Iterable[ObjectKey]) -> Child | None:
        """Return the first of these objects that is there and belongs to somebody else."""
        return next((child for key in keys if (child := self.children.get(key)) and not child.ours), None)


def observe(
    job_uid: str,
    children: Sequence[Body],
    warnings: WarningsByObject,
    now: datetime,
    series: Mapping[str, float] | None = None,
    obstacle: Trouble | None = None,
) -> Observed:
    """Return what is there of a job.

    Args:
        job_uid: uid of the FineTuneJob.
        children: the objects that carry the job's label, whoever owns them, and the claims that it uses.
        warnings: Events of type Warning about those of `questions`.
        now: the time.
        series: what rank 0's exporter says.
        obstacle: why the API server refused an object in this round.
    """
    seen = {object_key(body): _child(body, job_uid) for body in children}
    jobs = [
        (body, _job_seen(body, seen[object_key(body)], children, warnings, now))
        for body in sorted(children, key=object_key)
        if body["kind"] == "Job" and seen[object_key(body)].ours
    ]
    gangs: dict[int, tuple[JobSeen, ...]] = {}
    for body, job in jobs:
        attempt = int(_label(body, Label.ATTEMPT) or 0)
        if _label(body, Label.STAGE) == Stage.TRAIN:
            gangs[attempt] = (*gangs.get(attempt, ()), job)
    return Observed(
        children=seen,
        prepare=next((job for body, job in jobs if _label(body, Label.STAGE) == Stage.PREPARE), None),
        gangs=gangs,
        claims=_claim_trouble(children, warnings),
        claims_pending=any(causes.is_pending_claim(body) for body in children),
        series=series,
        obstacle=obstacle,
        pods_leaving=_pods_leaving(children, {job.child.uid for _, job in jobs}),
        training_pods=tuple(
            _pod_seen(body, seen[object_key(body)], warnings, now)
            for body in sorted(children, key=object_key)
            if body["kind"] == "Pod" and _label(body, Label.STAGE) == Stage.TRAIN and not causes.has_ended(body)
        ),
    )


def questions(job_uid: str, children: Sequence[Body], now: datetime) -> tuple[ObjectKey, ...]:
    """Return the objects whose Events have to be read to know why they wait; none while all goes well.

    Events are not watched: there are many of them, and they matter only to somebody who waits.
    """
    pods = [body for body in children if body["kind"] == "Pod"]
    asked = []
    for body in children:
        key, age = object_key(body), _age(body, now)
        status = body.get("status", {})
        if body["kind"] == "PersistentVolumeClaim":
            waits = causes.is_pending_claim(body) and age > _ORDINARY_START
        elif body["kind"] == "Job" and _owner_uid(body) == job_uid:
            waits = (
                _state(body) is JobState.ACTIVE
                and age > _ORDINARY_START
                and not any(_owner_uid(pod) == body["metadata"]["uid"] for pod in pods)
            )
        elif body["kind"] == "Pod":
            starts = status.get("phase") == "Pending" and causes.why_pod_waits(body, ()) is None
            waits = starts and age > _ORDINARY_MOUNT
        else:
            waits = False
        if waits:
            asked.append(key)
    return tuple(sorted(asked))


def belongs_to(body: Body, job_uid: str) -> bool:
    """Return whether an object with the name of a job's child is that child.

    A claim that the operator made and nobody owns was kept when an earlier job of the same name was deleted: it is
    used again, with what is on it.
    """
    if body["kind"] == "PersistentVolumeClaim" and _label(body, Label.MANAGED_BY) == names.OPERATOR:
        return _owner_uid(body) in (job_uid, None)
    return _owner_uid(body) == job_uid


def first_failure(jobs: Sequence[JobSeen]) -> PodSeen | None:
    """Return the pod whose failure explains the others': the first that did not merely lose its peers."""
    failed = [pod for job in jobs for pod in job.pods if pod.failure is not None]
    return min(failed, key=lambda pod: (pod.failed_by_another, pod.ended_at or "9999", pod.name), default=None)


def _child(body: Body, job_uid: str) -> Child:
    metadata = body["metadata"]
    return Child(
        key=object_key(body),
        uid=metadata["uid"],
        digest=metadata.get("annotations", {}).get(names.Annotation.MANIFEST_DIGEST),
        ours=belongs_to(body, job_uid),
        former=_was_owned_by_another_job(body, job_uid),
        deleting=metadata.get("deletionTimestamp") is not None,
    )


def _job_seen(body: Body, child: Child, children: Sequence[Body], warnings: WarningsByObject, now: datetime) -> JobSeen:
    pods = tuple(
        _pod_seen(pod, _child(pod, child.uid), warnings, now)
        for pod in sorted(children, key=object_key)
        if pod["kind"] == "Pod" and _owner_uid(pod) == child.uid
    )
    state = _state(body)
    own_trouble = None
    if state is JobState.FAILED:
        own_trouble = causes.why_job_failed(body)
    elif state is JobState.ACTIVE and not pods:
        own_trouble = causes.why_job_has_no_pods(body, warnings.get(child.key, ()))
    suspended = bool(body.get("spec", {}).get("suspend"))
    return JobSeen(child, state, body.get("spec", {}).get("completions") or 1, pods, own_trouble, suspended)


def _pod_seen(pod: Body, child: Child, warnings: WarningsByObject, now: datetime) -> PodSeen:
    leaving = pod["metadata"].get("deletionTimestamp") is not None
    failure = causes.why_pod_failed(pod)
    if failure is not None and leaving and failure.reason == Reason.TERMINATED:
        failure = Trouble(ConditionReason.POD_DELETED, f"Pod {pod['metadata']['name']} was deleted. {failure.message}")
    waits = causes.why_pod_waits(pod, warnings.get(object_key(pod), ()))
    if waits is not None and waits.reason == ConditionReason.UNSCHEDULABLE and _age(pod, now) < _ORDINARY_SCHEDULING:
        waits = None
    return PodSeen(
        child=child,
        attempt=int(_label(pod, Label.ATTEMPT) or 0),
        node=pod.get("spec", {}).get("nodeName"),
        ip=pod.get("status", {}).get("podIP"),
        ready=causes.is_ready(pod),
        ended=causes.has_ended(pod),
        ended_at=causes.ended_at(pod),
        termination=causes.termination_of(pod),
        waits=waits,
        failure=failure,
        node_silent=causes.why_node_is_silent(pod),
        unanswered_since=_unanswered_since(pod),
    )


def _unanswered_since(pod: Body) -> datetime | None:
    silent_since, asked_at = causes.node_silent_since(pod), causes.deletion_asked_at(pod)
    if silent_since is None or asked_at is None or causes.has_ended(pod):
        return None
    return max(silent_since, asked_at)


def _state(job: Body) -> JobState:
    true_conditions = {
        condition.get("type")
        for condition in job.get("status", {}).get("conditions") or ()
        if condition.get("status") == "True"
    }
    # FailureTarget and SuccessCriteriaMet come while pods still end; Failed and Complete when all have ended.
    if true_conditions & {"Failed", "FailureTarget"}:
        return JobState.FAILED
    return JobState.SUCCEEDED if "Complete" in true_conditions else JobState.ACTIVE


def _claim_trouble(children: Sequence[Body], warnings: WarningsByObject) -> Trouble | None:
    for body in sorted(children, key=object_key):
        if body["kind"] == "PersistentVolumeClaim":
            trouble = causes.why_claim_is_pending(body, warnings.get(object_key(body), ()))
            if trouble is not None:
                return trouble
    return None


def _pods_leaving(children: Sequence[Body], job_uids: set[str]) -> tuple[str, ...]:
    return tuple(
        body["metadata"]["name"]
        for body in sorted(children, key=object_key)
        if body["kind"] == "Pod"
        and _label(body, Label.STAGE) == Stage.TRAIN
        and _owner_uid(body) not in job_uids
        and not causes.has_ended(body)
    )


def _label(body: Body, label: Label) -> str | None:
    found = body["metadata"].get("labels", {}).get(label)
    return None if found is None else str(found)


def _owner_uid(body: Body) -> str | None:
    for reference in body["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference["uid"])
    return None


def _was_owned_by_another_job(body: Body, job_uid: str) -> bool:
    """Whether the FineTuneJob that owns an object had the name of this one: two of a name are never there at once."""
    return any(
        reference.get("kind") == names.KIND
        and reference.get("name") == _label(body, Label.JOB)
        and reference["uid"] != job_uid
        for reference in body["metadata"].get("ownerReferences") or ()
    )


def _age(body: Body, now: datetime) -> timedelta:
    return now - datetime.fromisoformat(body["metadata"]["creationTimestamp"])


def access_modes(children: Sequence[Body]) -> dict[str, Sequence[Any]]:
    """Return the access modes of the claims among the children, by name."""
    return {
        body["metadata"]["name"]: tuple(body.get("spec", {}).get("accessModes") or ())
        for body in children
        if body["kind"] == "PersistentVolumeClaim"
    }
