"""How an attempt ends: it has trained to the end, it breaks off, it vanishes, or it hangs."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_operator import status as tell
from finetune_operator.api.status import ConditionStatus, ConditionType, FineTuneJobStatus
from finetune_operator.build import Wanted, wanted
from finetune_operator.causes import Trouble
from finetune_operator.decide import children
from finetune_operator.decide.attempts import under_way, verdict_on_attempt
from finetune_operator.decide.decision import LOOK_AGAIN_SECONDS, Decision, Look
from finetune_operator.decide.evaluate import is_wanted
from finetune_operator.decide.failures import cause_of_failure, has_failure, root_cause_expected_by
from finetune_operator.names import ConditionReason
from finetune_operator.observe import Observed
from finetune_operator.progress import with_report
from finetune_operator.workloads import JobSeen, JobState
from finetune_trainer.contract.termination import TerminationMessage

Gang = Sequence[JobSeen]


def with_last_word(look: Look, status: FineTuneJobStatus) -> FineTuneJobStatus:
    """Return the status with what rank 0 of the newest attempt said when it ended."""
    last_word = _last_word(_newest_gang(look, status))
    return status if last_word is None or last_word.progress is None else with_report(status, last_word.progress)


def end_of_attempt(look: Look, status: FineTuneJobStatus) -> Decision | None:
    """Decide on the end of the attempt under way; None when none is, or it has not ended.

    While it has ended and the reason is not known yet, the status that comes back still has it under way.
    """
    attempt, gang = under_way(status), _newest_gang(look, status)
    if attempt is None or any(job.suspended for job in gang):
        return None
    if has_failure(gang):
        return _failed(look, status, gang)
    workloads = wanted.workloads(look.plan, attempt.number)
    if trouble := _vanished(workloads, gang, look.observed, status) or _stalled(look, status):
        return break_off(look, status, trouble)
    if len(gang) < len(workloads) or any(job.state is not JobState.SUCCEEDED for job in gang):
        return None
    if any(job.pods_lag_behind for job in gang):
        return Decision(status, wake_after_seconds=LOOK_AGAIN_SECONDS)
    return _succeeded(look, status, gang)


def break_off(look: Look, status: FineTuneJobStatus, cause: Trouble) -> Decision:
    """End the attempt under way: the gang is taken down, and another follows where that may help."""
    status = tell.attempt_ended(status, look.moment, cause)
    verdict = verdict_on_attempt(status, cause.reason, look.policy.max_restarts)
    if verdict.again_at is None:
        status = tell.failed(status, look.moment, cause, verdict.words)
        return Decision(status, delete=children.holding_nodes(look.observed))
    status = tell.restarting(status, look.moment, cause, verdict.words)
    leaving = children.not_yet_leaving(children.former_gangs(look.observed, ()))
    return Decision(status, delete=leaving, wake_after_seconds=LOOK_AGAIN_SECONDS)


def _failed(look: Look, status: FineTuneJobStatus, gang: Gang) -> Decision:
    """End the attempt with the cause that explains the others, once it is known."""
    last_word = _last_word(gang)
    if last_word is not None and last_word.trained is not None:
        # The adapter is there: a worker that stumbles over its own end spoils nothing.
        return _succeeded(look, status, gang)
    if expected_by := root_cause_expected_by(gang, look.now):
        return Decision(status).waking_at(expected_by, look.now)
    cause = cause_of_failure(gang)
    if cause is None:
        return Decision(status, wake_after_seconds=LOOK_AGAIN_SECONDS)
    return break_off(look, status, cause)


def _succeeded(look: Look, status: FineTuneJobStatus, gang: Gang) -> Decision:
    last_word = _last_word(gang)
    report = last_word.trained if last_word is not None else None
    tell_of_it = tell.trained if is_wanted(look, status) else tell.succeeded
    return Decision(tell_of_it(status, look.moment, report), delete=children.holding_nodes(look.observed))


def _vanished(workloads: Sequence[Wanted], gang: Gang, observed: Observed, status: FineTuneJobStatus) -> Trouble | None:
    """Tell of a part of a gang that somebody deleted after all of it had run.

    Before that nothing is lost and it is made again; afterwards the others wait for it in vain.
    """
    if tell.answer(status, ConditionType.RUNNING) is not ConditionStatus.TRUE:
        return None
    for workload in workloads:
        child = observed.children.get(workload.key)
        if child is None or child.deleting:
            name = f"{workload.key.kind} {workload.key.name}"
            return Trouble(ConditionReason.TRAIN_JOB_DELETED, f"{name} was deleted while it trained.")
    for job in gang:
        if job.state is JobState.ACTIVE and len(job.pods) < job.num_pods:
            return Trouble(
                ConditionReason.POD_DELETED,
                f"{job.child.key.kind} {job.child.key.name} has {len(job.pods)} of its {job.num_pods} pods left: the "
                "others were deleted by force, or are gone with their node.",
            )
    return None


def _stalled(look: Look, status: FineTuneJobStatus) -> Trouble | None:
    """Tell of a gang that runs and has done no step for longer than it may, as of what was heard in this round.

    Silence counts once rank 0 has been heard in this job. Before that, the reason may be a network policy that keeps
    the operator from asking, and a gang that trains well is not stopped for that.
    """
    running_since, heard = tell.answered_at(status, ConditionType.RUNNING), look.heard
    timeout = timedelta(seconds=look.policy.stall_timeout_seconds)
    runs = tell.answer(status, ConditionType.RUNNING) is ConditionStatus.TRUE
    if not timeout or not runs or running_since is None or heard is None:
        return None
    if never_heard(look, status):
        return None
    if heard.report is not None:
        status = with_report(status, heard.report)
    last_step_time = status.progress.last_step_time if status.progress is not None else None
    last_step = datetime.fromisoformat(last_step_time) if last_step_time is not None else running_since
    since = max(last_step, running_since)
    if look.now < since + timeout:
        return None
    done = f"{status.progress.steps} steps are done" if status.progress is not None else "no step is done"
    return Trouble(
        ConditionReason.STALLED,
        f"No step since {since:%Y-%m-%d %H:%M:%S} UTC, which is longer than spec.runPolicy.stallTimeoutSeconds allows "
        f"({look.policy.stall_timeout_seconds}); {done}.",
    )


def never_heard(look: Look, status: FineTuneJobStatus) -> bool:
    """Whether rank 0 was asked in this round and has never answered in this job."""
    return look.heard is not None and not look.heard.answers and status.progress is None


def _newest_gang(look: Look, status: FineTuneJobStatus) -> Gang:
    return look.observed.gangs.get(status.attempts[-1].number, ()) if status.attempts else ()


def _last_word(gang: Gang) -> TerminationMessage | None:
    """Return what rank 0 said at its end: the leader's Job comes first, and rank 0 is its first pod."""
    return gang[0].pods[0].termination if gang and gang[0].pods else None
