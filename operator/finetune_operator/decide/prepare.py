"""The first stage: one pod without a GPU that fetches, checks and packs."""

from finetune_operator import status as tell
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.build import wanted
from finetune_operator.causes import Trouble
from finetune_operator.decide.decision import Decision, Look
from finetune_operator.decide.one_pod import OnePodStage, run_one_pod
from finetune_operator.names import ConditionReason
from finetune_operator.workloads import JobSeen, JobState, PodSeen
from finetune_trainer.contract.termination import PreparedReport, Reason


def prepare(look: Look, status: FineTuneJobStatus) -> Decision:
    """Take the next step of preparing; the status that comes back has Prepared=True when it is done."""
    plan = look.plan
    stage = OnePodStage(
        job=look.observed.prepare,
        wanted=(*wanted.shared_by_stages(plan), wanted.prepare_job(plan)),
        doing="Preparing",
        failures=status.prepare_failures,
        tell_of_it=tell.preparing,
        tell_of_failure=tell.prepare_failed,
    )
    outcome = run_one_pod(stage, look, status)
    if isinstance(outcome, Decision):
        return outcome
    report = report_of(look.observed.prepare)
    if report is None:
        return Decision(tell.failed(status, look.moment, _no_report(outcome)))
    return Decision(tell.prepared(status, look.moment, report))


def report_of(job: JobSeen | None) -> PreparedReport | None:
    """Return what the pod of a finished prepare Job reported, as far as it was seen."""
    if job is None or job.state is not JobState.SUCCEEDED or not job.pods:
        return None
    termination = job.pods[0].termination
    return termination.prepared if termination is not None else None


def _no_report(pod: PodSeen) -> Trouble:
    reason = pod.termination.reason if pod.termination else Reason.ERROR
    return Trouble(
        ConditionReason.REPORT_MISSING,
        f"Pod {pod.name} ended with {reason} but left no report of what it prepared. The image does not hold a trainer "
        "of this operator's version; see spec.compute.image.",
    )
