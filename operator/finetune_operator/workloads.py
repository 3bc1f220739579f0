"""A Job or a PyTorchJob and its pods as the operator sees them: how far they are, what they wait for, why they failed.

Pure: raw objects in, frozen data out. What troubles one object is for `causes` to say; here it is put together, because
a pod often says only what another one did to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from finetune_operator import back_ends, causes, names, pod_status, training_operator
from finetune_operator.causes import Trouble
from finetune_operator.names import ConditionReason, Label
from finetune_operator.store import Body, ObjectKey, object_key
from finetune_trainer.contract.termination import Reason, TerminationMessage

WarningsByObject = Mapping[ObjectKey, Sequence[Body]]

# The scheduler tries again by itself while a claim is being bound or a node is being freed: no news for some seconds.
_ORDINARY_SCHEDULING = timedelta(seconds=4)

# What a pod says when another pod of the gang went first.
_CONSEQUENCES = frozenset({Reason.COLLECTIVE_FAILED, Reason.TERMINATED})
# How a pod ends that was told to stop.
_STOPPED = frozenset({Reason.TERMINATED, Reason.KILLED})


class JobState(StrEnum):
    """Where a Job or a PyTorchJob stands."""

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
    """A pod of a Job or a PyTorchJob."""

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
    deletion_asked_at: datetime | None
    """When somebody asked for its deletion: a person, a controller, or the operator."""
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
    """A Job or a PyTorchJob, and its pods."""

    child: Child
    state: JobState
    num_pods: int
    """Pods that it is to have."""
    pods: tuple[PodSeen, ...]
    """Those that it has, by name."""
    own_trouble: Trouble | None
    """What it says of itself: it is queued, its pods are refused, or it failed and no pod tells why."""
    suspended: bool = False
    """Whether a queue (Kueue) holds it back, or has taken its place away: it has no pods, or they are leaving."""
    taken_up: bool = True
    """Whether its controller has begun with it."""

    @property
    def waits(self) -> Trouble | None:
        """What keeps its pods from running."""
        if self.state is not JobState.ACTIVE:
            return None
        return next((pod.waits for pod in self.pods if pod.waits is not None), self.own_trouble)

    @property
    def running(self) -> bool:
        """Whether every pod that it is to have runs, or has done its work."""
        return not self.suspended and sum(pod.ready or pod.ended for pod in self.pods) >= self.num_pods

    @property
    def pods_lag_behind(self) -> bool:
        """Whether it has ended and a pod of it was not yet seen to end: pods and Jobs are watched apart."""
        return self.state is not JobState.ACTIVE and not all(pod.ended for pod in self.pods)


def first_failure(jobs: Sequence[JobSeen]) -> PodSeen | None:
    """Return the pod whose failure explains the others': the first that did not merely lose its peers.

    When all that failed have merely lost a peer and the node of one does not answer, that one is the cause.
    """
    pods = [pod for job in jobs for pod in job.pods]
    failed = [pod for pod in pods if pod.failure is not None]
    silent = [replace(pod, failure=pod.node_silent) for pod in pods if pod.node_silent is not None]
    if failed and silent and all(pod.failed_by_another for pod in failed):
        return min(silent, key=lambda pod: pod.name)
    return min(failed, key=lambda pod: (pod.failed_by_another, pod.ended_at or "9999", pod.name), default=None)


def see_job(body: Body, child: Child, pods: Sequence[PodSeen], warnings: WarningsByObject) -> JobSeen:
    """Return what a Job or a PyTorchJob and its pods are.

    Args:
        body: the Job or PyTorchJob.
        child: the same, as a child of the FineTuneJob.
        pods: the pods that it owns, by name.
        warnings: Events of type Warning, by the object that they are about.
    """
    seen = [pod for pod in pods if not _is_of_former_run(pod, body)]
    state = _state_by_its_pods(body, seen)
    suspended = state is JobState.ACTIVE and is_suspended(body)
    own_trouble = None
    if state is JobState.FAILED:
        own_trouble = _why_it_failed(body)
    elif suspended:
        seen = [replace(pod, failure=None, waits=None) for pod in seen]
        own_trouble = causes.why_job_is_queued(body)
    elif state is JobState.ACTIVE and len(seen) < back_ends.num_pods(body):
        own_trouble = _why_pods_are_missing(body, warnings.get(child.key, ()))
    return JobSeen(
        child=child,
        state=state,
        num_pods=back_ends.num_pods(body),
        pods=tuple(_with_deletion_explained(pod, seen) for pod in seen),
        own_trouble=own_trouble,
        suspended=suspended,
        taken_up=is_taken_up(body),
    )


def see_pod(pod: Body, warnings: WarningsByObject, now: datetime) -> PodSeen:
    """Return what a pod is, looked at by itself.

    Args:
        pod: the pod.
        warnings: Events of type Warning, by the object that they are about.
        now: the time.
    """
    said = warnings.get(object_key(pod), ())
    waits = training_operator.why_init_container_waits(pod) or causes.why_pod_waits(pod, said)
    if waits is not None and waits.reason == ConditionReason.UNSCHEDULABLE and age(pod, now) < _ORDINARY_SCHEDULING:
        waits = None
    return PodSeen(
        child=see_child(pod, ours=owner_uid(pod) is not None, former=False),
        attempt=int(label(pod, Label.ATTEMPT) or 0),
        node=pod.get("spec", {}).get("nodeName"),
        ip=pod.get("status", {}).get("podIP"),
        ready=pod_status.is_ready(pod),
        ended=pod_status.has_ended(pod),
        ended_at=pod_status.ended_at(pod),
        termination=pod_status.termination_of(pod),
        waits=waits,
        failure=training_operator.why_init_container_failed(pod) or causes.why_pod_failed(pod),
        deletion_asked_at=pod_status.deletion_asked_at(pod),
        node_silent=causes.why_node_is_silent(pod),
        unanswered_since=_unanswered_since(pod),
    )


def see_child(body: Body, *, ours: bool, former: bool) -> Child:
    """Return what an object with the name of a child is."""
    metadata = body["metadata"]
    return Child(
        key=object_key(body),
        uid=metadata["uid"],
        digest=metadata.get("annotations", {}).get(names.Annotation.MANIFEST_DIGEST),
        ours=ours,
        former=former,
        deleting=metadata.get("deletionTimestamp") is not None,
    )


def state_of(job: Body) -> JobState:
    """Return where a Job or a PyTorchJob stands, by its own words."""
    if back_ends.says_failed(job):
        return JobState.FAILED
    return JobState.SUCCEEDED if back_ends.says_succeeded(job) else JobState.ACTIVE


def _state_by_its_pods(job: Body, pods: Sequence[PodSeen]) -> JobState:
    """Return where it stands; a PyTorchJob says that it is done when its master is, so the others are counted here.

    Its workers are deleted as soon as it says so, and that they are gone may be seen before.
    """
    state = state_of(job)
    if not back_ends.is_pytorch_job(job) or state is JobState.FAILED:
        return state
    if _has_trained(pods):
        return JobState.SUCCEEDED
    if state is JobState.ACTIVE or not all(pod.ended for pod in pods):
        return JobState.ACTIVE
    return JobState.SUCCEEDED if len(pods) >= back_ends.num_pods(job) else JobState.FAILED


def _has_trained(pods: Sequence[PodSeen]) -> bool:
    """Whether rank 0 has reported an adapter; then no other pod has anything left to do."""
    termination = pods[0].termination if pods else None
    return termination is not None and termination.trained is not None


def _why_it_failed(job: Body) -> Trouble:
    if back_ends.says_failed(job):
        return causes.why_job_failed(job)
    return training_operator.why_success_is_none(job)


def _why_pods_are_missing(job: Body, warnings: Sequence[Body]) -> Trouble | None:
    if back_ends.is_pytorch_job(job):
        return training_operator.why_pods_are_missing(job, warnings)
    return causes.why_job_has_no_pods(job, warnings)


def is_taken_up(workload: Body) -> bool:
    """Return whether its controller has begun with it. Before that nobody can have told why its pods are missing.

    NB: among a thousand new Jobs that takes minutes, and API servers read Events from etcd, all of a namespace.
    """
    return workload["kind"] != "Job" or workload.get("status", {}).get("startTime") is not None


def is_suspended(job: Body) -> bool:
    """Return whether a Job is suspended, or was and its controller has not seen yet that it is so no more."""
    told = pod_status.condition(job, "Suspended")
    return back_ends.asks_to_suspend(job) or (told is not None and told.get("status") == "True")


def _is_of_former_run(pod: PodSeen, job: Body) -> bool:
    """Return whether a pod was told to stop when its Job was suspended, and others have taken its place since."""
    suspended = pod_status.condition(job, "Suspended")
    if suspended is None or suspended.get("status") == "True":
        return False
    resumed_at = pod_status.condition_time(suspended)
    stopped_at = pod.deletion_asked_at or (datetime.fromisoformat(pod.ended_at) if pod.ended_at is not None else None)
    return resumed_at is not None and stopped_at is not None and stopped_at <= resumed_at


def _with_deletion_explained(pod: PodSeen, gang: Sequence[PodSeen]) -> PodSeen:
    """Say who is behind the end of a pod that was told to stop by being deleted.

    Kubernetes does not say who deleted a pod. But a Job deletes its other pods only after one has failed; so what is
    left was somebody.
    """
    asked_at = pod.deletion_asked_at
    if asked_at is None or pod.failure is None or pod.failure.reason not in _STOPPED:
        return pod
    if any(_ended_before(other, asked_at) for other in gang):
        words = f"Pod {pod.name} was stopped because another pod of its Job had failed. {pod.failure.message}"
        return replace(pod, failure=Trouble(Reason.TERMINATED, words))
    return replace(
        pod, failure=Trouble(ConditionReason.POD_DELETED, f"Pod {pod.name} was deleted. {pod.failure.message}")
    )


def _ended_before(pod: PodSeen, moment: datetime) -> bool:
    if pod.failure is None or pod.ended_at is None:
        return False
    return datetime.fromisoformat(pod.ended_at) <= moment


def _unanswered_since(pod: Body) -> datetime | None:
    asked_at, silent_since = pod_status.deletion_asked_at(pod), pod_status.node_silent_since(pod)
    if asked_at is None or pod_status.has_ended(pod):
        return None
    if silent_since is not None:
        return max(silent_since, asked_at)
    # A pod that never ran never was ready, so nobody can take that from it. Nothing of it can be running on.
    never_ran = pod.get("spec", {}).get("nodeName") is not None and not pod_status.has_started(pod)
    return datetime.fromisoformat(pod["metadata"]["deletionTimestamp"]) if never_ran else None


def label(body: Body, key: Label) -> str | None:
    """Return the value of a label, or None when the object does not have it."""
    found = body["metadata"].get("labels", {}).get(key)
    return None if found is None else str(found)


def owner_uid(body: Body) -> str | None:
    """Return the uid of the controller that owns an object."""
    for reference in body["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference["uid"])
    return None


def age(body: Body, now: datetime) -> timedelta:
    """Return how long an object has been there."""
    return now - datetime.fromisoformat(body["metadata"]["creationTimestamp"])
