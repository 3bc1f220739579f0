"""A stage that is one pod: it is made, it ends, and when it breaks off it is tried again after a delay."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune_operator import status as tell
from finetune_operator.api.status import Failure, FineTuneJobStatus, Phase
from finetune_operator.build import Wanted
from finetune_operator.causes import Trouble
from finetune_operator.decide import children
from finetune_operator.decide.attempts import earliest_retry, verdict_on_one_pod
from finetune_operator.decide.decision import LOOK_AGAIN_SECONDS, Decision, Look
from finetune_operator.decide.failures import cause_of_failure, has_failure
from finetune_operator.status import Moment
from finetune_operator.workloads import JobSeen, JobState, PodSeen


@dataclass(frozen=True)
class OnePodStage:
    """What tells one such stage from another."""

    job: JobSeen | None
    wanted: tuple[Wanted, ...]
    """Its Job, and what that needs."""
    doing: str
    """What it does, as the beginning of a sentence."""
    failures: Sequence[Failure]
    """The times that it broke off."""
    tell_of_it: Callable[[FineTuneJobStatus, Moment, Trouble | None], FineTuneJobStatus]
    """Tells that it runs, or what keeps it from running."""
    tell_of_failure: Callable[[FineTuneJobStatus, Moment, Trouble, str], FineTuneJobStatus]
    """Tells that it broke off, and what follows."""


def run_one_pod(stage: OnePodStage, look: Look, status: FineTuneJobStatus) -> Decision | PodSeen:
    """Take the next step of a stage; return its pod when that has ended well."""
    job = stage.job
    if job is not None and job.child.deleting:
        return Decision(status, wake_after_seconds=LOOK_AGAIN_SECONDS)
    if status.phase is Phase.RESTARTING:
        if job is not None:
            return Decision(status, delete=(job.child,), wake_after_seconds=LOOK_AGAIN_SECONDS)
        again_at = earliest_retry(stage.failures)
        if again_at is not None and look.now < again_at:
            return Decision(status).waking_at(again_at, look.now)
    if job is None or (job.state is JobState.ACTIVE and not has_failure((job,))):
        return _make(stage, look, status, job)
    if cause := cause_of_failure((job,)):
        return _fail(stage, look, status, job, cause)
    if job.pods_lag_behind:
        return Decision(status, wake_after_seconds=LOOK_AGAIN_SECONDS)
    if not job.pods:
        # Its report went with its pod, so it is done once more; what it left on the shared filesystem is found again.
        return Decision(status, delete=(job.child,))
    return job.pods[0]


def _make(stage: OnePodStage, look: Look, status: FineTuneJobStatus, job: JobSeen | None) -> Decision:
    observed, moment = look.observed, look.moment
    obstacle = children.obstacle(stage.wanted, observed)
    if obstacle is not None and (job is None or not job.running):
        status = stage.tell_of_it(status, moment, obstacle)
        return Decision(status, wake_after_seconds=LOOK_AGAIN_SECONDS)
    waits = None if job is not None and job.running else observed.claims or (job.waits if job else None)
    runs = job is not None and job.running and waits is None
    jobs = () if job is None else (job,)
    return Decision(
        stage.tell_of_it(status, moment, waits),
        apply=children.due(stage.wanted, observed) if obstacle is None else (),
        wake_after_seconds=None if runs else children.wake_while_waiting(status, waits, jobs, look),
    )


def _fail(stage: OnePodStage, look: Look, status: FineTuneJobStatus, job: JobSeen, cause: Trouble) -> Decision:
    verdict = verdict_on_one_pod(stage.doing, stage.failures, status.restarts, cause.reason, look)
    if verdict.again_at is None:
        return Decision(tell.failed(status, look.moment, cause, verdict.words))
    status = stage.tell_of_failure(status, look.moment, cause, verdict.words)
    return Decision(status, delete=(job.child,), wake_after_seconds=LOOK_AGAIN_SECONDS)
