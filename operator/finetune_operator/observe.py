"""From the raw children of a job to what is: which of them are there, how far they are, and what troubles them.

Pure: what the API server said in, frozen data out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_operator import causes, names
from finetune_operator.back_ends import WORKLOAD_KINDS, num_pods
from finetune_operator.causes import Trouble
from finetune_operator.names import Label, Stage
from finetune_operator.store import Body, ObjectKey, object_key
from finetune_operator.workloads import (
    Child,
    JobSeen,
    JobState,
    PodSeen,
    WarningsByObject,
    age,
    is_suspended,
    is_taken_up,
    label,
    owner_uid,
    see_child,
    see_job,
    see_pod,
    state_of,
)

# How long a thing may take before its Events are asked for.
_ORDINARY_START = timedelta(seconds=3)
_ORDINARY_MOUNT = timedelta(seconds=20)


@dataclass(frozen=True)
class Observed:
    """What is there of a job."""

    children: Mapping[ObjectKey, Child]
    prepare: JobSeen | None
    evaluate: JobSeen | None
    gangs: Mapping[int, tuple[JobSeen, ...]]
    """The training Jobs of each attempt, by name: the leader's comes before the workers'."""
    claims: Trouble | None
    """Why a claim is not bound."""
    claims_pending: bool = False
    """Whether a claim is not bound, for whatever reason: a usual one is that its first pod is yet to come."""
    lacking: Trouble | None = None
    """What the cluster lacks that trains: the kind of object that spec.compute.backend names."""
    nodes: tuple[Mapping[str, str], ...] = ()
    """Labels of the nodes of the newest gang, one entry for each pod, where they were asked for."""
    obstacle: Trouble | None = None
    """Why the API server would not make a child."""
    training_pods: tuple[PodSeen, ...] = ()
    """All training pods that have not ended, of whichever attempt and of a former job too, by name."""

    def in_the_way(self, attempt: int) -> tuple[PodSeen, ...]:
        """Return the training pods that have to be gone before an attempt may start: all that are not its own."""
        own = {pod.child.uid for job in self.gangs.get(attempt, ()) for pod in job.pods}
        return tuple(pod for pod in self.training_pods if pod.child.uid not in own)

    def foreign(self, keys: Iterable[ObjectKey]) -> Child | None:
        """Return the first of these objects that is there and belongs to somebody else."""
        return next((child for key in keys if (child := self.children.get(key)) and not child.ours), None)


def observe(
    job_uid: str,
    children: Sequence[Body],
    warnings: WarningsByObject,
    now: datetime,
    obstacle: Trouble | None = None,
) -> Observed:
    """Return what is there of a job.

    Args:
        job_uid: uid of the FineTuneJob.
        children: the objects that carry the job's label, whoever owns them, and the claims that it uses.
        warnings: Events of type Warning about those of `questions`.
        now: the time.
        obstacle: why the API server refused an object in this round.
    """
    children = sorted(children, key=object_key)
    pods = [(body, see_pod(body, warnings, now)) for body in children if body["kind"] == "Pod"]
    seen = {object_key(body): _child(body, job_uid) for body in children}
    one_pod_jobs: dict[str | None, JobSeen] = {}
    gangs: dict[int, tuple[JobSeen, ...]] = {}
    for body in children:
        child = seen[object_key(body)]
        if body["kind"] not in WORKLOAD_KINDS or not child.ours:
            continue
        job = see_job(body, child, [pod for pod_body, pod in pods if owner_uid(pod_body) == child.uid], warnings)
        if label(body, Label.STAGE) == Stage.TRAIN:
            attempt = int(label(body, Label.ATTEMPT) or 0)
            gangs[attempt] = (*gangs.get(attempt, ()), job)
        else:
            one_pod_jobs[label(body, Label.STAGE)] = job
    return Observed(
        children=seen,
        prepare=one_pod_jobs.get(Stage.PREPARE),
        evaluate=one_pod_jobs.get(Stage.EVALUATE),
        gangs=gangs,
        claims=_claim_trouble(children, warnings),
        claims_pending=any(causes.is_pending_claim(body) for body in children),
        obstacle=obstacle,
        training_pods=tuple(
            pod for pod_body, pod in pods if label(pod_body, Label.STAGE) == Stage.TRAIN and not pod.ended
        ),
    )


def questions(job_uid: str, children: Sequence[Body], now: datetime) -> tuple[ObjectKey, ...]:
    """Return the objects whose Events have to be read to know why they wait; none while all goes well.

    Events are not watched: there are many of them, and they matter only to somebody who waits.
    """
    pods = [body for body in children if body["kind"] == "Pod"]
    asked = []
    for body in children:
        old = age(body, now)
        if body["kind"] == "PersistentVolumeClaim":
            waits = causes.is_pending_claim(body) and old > _ORDINARY_START
        elif body["kind"] in WORKLOAD_KINDS and owner_uid(body) == job_uid:
            runs = state_of(body) is JobState.ACTIVE and not is_suspended(body)
            own_pods = sum(owner_uid(pod) == body["metadata"]["uid"] for pod in pods)
            waits = runs and own_pods < num_pods(body) and old > _ORDINARY_START and is_taken_up(body)
        elif body["kind"] == "Pod":
            starts = body.get("status", {}).get("phase") == "Pending" and causes.why_pod_waits(body, ()) is None
            waits = starts and old > _ORDINARY_MOUNT
        else:
            waits = False
        if waits:
            asked.append(object_key(body))
    return tuple(sorted(asked))


def belongs_to(body: Body, job_uid: str) -> bool:
    """Return whether an object with the name of a job's child is that child.

    A claim that the operator made and nobody owns was kept when an earlier job of the same name was deleted: it is
    used again, with what is on it.
    """
    if body["kind"] == "PersistentVolumeClaim" and label(body, Label.MANAGED_BY) == names.OPERATOR:
        return owner_uid(body) in (job_uid, None)
    return owner_uid(body) == job_uid


def access_modes(children: Sequence[Body]) -> dict[str, Sequence[Any]]:
    """Return the access modes of the claims among the children, by name."""
    return {
        body["metadata"]["name"]: tuple(body.get("spec", {}).get("accessModes") or ())
        for body in children
        if body["kind"] == "PersistentVolumeClaim"
    }


def _child(body: Body, job_uid: str) -> Child:
    ours = belongs_to(body, job_uid)
    return see_child(body, ours=ours, former=not ours and _was_owned_by_another_job(body, job_uid))


def _was_owned_by_another_job(body: Body, job_uid: str) -> bool:
    """Whether the FineTuneJob that owns an object had the name of this one: two of a name are never there at once."""
    return any(
        reference.get("kind") == names.KIND
        and reference.get("name") == label(body, Label.JOB)
        and reference["uid"] != job_uid
        for reference in body["metadata"].get("ownerReferences") or ()
    )


def _claim_trouble(children: Sequence[Body], warnings: WarningsByObject) -> Trouble | None:
    claims = (body for body in children if body["kind"] == "PersistentVolumeClaim")
    troubles = (causes.why_claim_is_pending(claim, warnings.get(object_key(claim), ())) for claim in claims)
    return next((trouble for trouble in troubles if trouble is not None), None)
