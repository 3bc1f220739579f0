"""The first stage: one pod without a GPU that fetches, checks and packs."""

from finetune_operator import status as tell
from finetune_operator.api.status import FineTuneJobStatus, Phase
from finetune_operator.build import build_claims, build_config_map, build_prepare_job
from finetune_operator.causes import Trouble
from finetune_operator.decide import children
from finetune_operator.decide.attempts import earliest_preparation, verdict_on_prepare
from finetune_operator.decide.decision import LOOK_AGAIN_SECONDS, Decision, Look
from finetune_operator.decide.failures import cause_of_failure, has_failure
from finetune_operator.names import ConditionReason
from finetune_operator.workloads import JobSeen, JobState, PodSeen
from finetune_trainer.contract.termination import PreparedReport, Reason


def prepare(look: Look, status: FineTuneJobStatus) -> Decision:
    """Take the next step of preparing; the status that comes back has Prepared=True when it is done."""
    job, moment = look.observed.prepare, look.moment
    if job is not None and job.child.deleting:
        return Decision(status, wake_after_seconds=LOOK_AGAIN_SECONDS)
    if status.phase is Phase.RESTARTING:
        if job is not None:
            return Decision(status, delete=(job.child,), wake_after_seconds=LOOK_AGAIN_SECONDS)
        again_at = earliest_preparation(status.prepare_failures)
        if again_at is not None and look.now < again_at:
            return Decision(status).waking_at(again_at, look.now)
    if job is None or (job.state is JobState.ACTIVE and not has_failure((job,))):
        return _make(look, status, job)
    if cause := cause_of_failure((job,)):
        return _fail(look, status, job, cause)
    if job.pods_lag_behind:
        return Decision(status, wake_after_seconds=LOOK_AGAIN_SECONDS)
    if not job.pods:
        # Its report went with its pod. Preparing again finds the model and the data in their caches.
        return Decision(status, delete=(job.child,))
    report = report_of(job)
    if report is None:
        return Decision(tell.failed(status, moment, _no_report(job.pods[0])))
    return Decision(tell.prepared(status, moment, report))


def report_of(job: JobSeen | None) -> PreparedReport | None:
    """Return what the pod of a finished prepare Job reported, as far as it was seen."""
    if job is None or job.state is not JobState.SUCCEEDED or not job.pods:
        return None
    termination = job.pods[0].termination
    return termination.prepared if termination is not None else None


def _make(look: Look, status: FineTuneJobStatus, job: JobSeen | None) -> Decision:
    plan, observed, moment = look.plan, look.observed, look.moment
    wanted = [*build_claims(plan), build_config_map(plan), build_prepare_job(plan)]
    obstacle = children.obstacle(wanted, observed)
    if obstacle is not None and (job is None or not job.running):
        return Decision(tell.preparing(status, moment, obstacle), wake_after_seconds=LOOK_AGAIN_SECONDS)
    waits = None if job is not None and job.running else observed.claims or (job.waits if job else None)
    runs = job is not None and job.running and waits is None
    return Decision(
        tell.preparing(status, moment, waits),
        apply=children.due(wanted, observed) if obstacle is None else (),
        wake_after_seconds=None if runs else children.wake_while_waiting(status, waits, look),
    )


def _fail(look: Look, status: FineTuneJobStatus, job: JobSeen, cause: Trouble) -> Decision:
    verdict = verdict_on_prepare(status, cause.reason, look.now, look.policy.max_restarts)
    if verdict.again_at is None:
        return Decision(tell.failed(status, look.moment, cause, verdict.words))
    status = tell.prepare_failed(status, look.moment, cause, verdict.words)
    return Decision(status, delete=(job.child,), wake_after_seconds=LOOK_AGAIN_SECONDS)


def _no_report(pod: PodSeen) -> Trouble:
    reason = pod.termination.reason if pod.termination else Reason.ERROR
    return Trouble(
        ConditionReason.REPORT_MISSING,
        f"Pod {pod.name} ended with {reason} but left no report of what it prepared. The image does not hold a trainer "
        "of this operator's version; see spec.compute.image.",
    )
