"""What we tell a person about a job: its phase, its conditions, its attempts.

Pure. Each function takes the status so far and returns the next one; a condition keeps its transition time for as long
as its answer stays the same.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from finetune_operator.api.status import (
    MAX_ATTEMPTS,
    Attempt,
    Condition,
    ConditionStatus,
    ConditionType,
    Failure,
    FineTuneJobStatus,
    Phase,
    Result,
)
from finetune_operator.causes import Trouble
from finetune_operator.names import ConditionReason
from finetune_operator.progress import steps_lost, with_result
from finetune_operator.summaries import summary_of, what_came_out
from finetune_trainer.contract.evaluation import EvaluationReport, ExportReport
from finetune_trainer.contract.termination import PreparedReport, TrainedReport

_MAX_MESSAGE_CHARACTERS = 4096
_MAX_ATTEMPT_MESSAGE_CHARACTERS = 1024


@dataclass(frozen=True)
class Moment:
    """When a status is made, and from which generation of the spec."""

    now: datetime
    generation: int

    @property
    def text(self) -> str:
        """The time in RFC 3339, in UTC and whole seconds."""
        return time_text(self.now)


def time_text(time: datetime) -> str:
    """Return a time as Kubernetes writes it: RFC 3339, in UTC and whole seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def about(status: FineTuneJobStatus, model: str) -> FineTuneJobStatus:
    """Tell which model a job is about."""
    return status.model_copy(update={"model": model})


def refused(status: FineTuneJobStatus, moment: Moment, trouble: Trouble) -> FineTuneJobStatus:
    """Tell that the spec cannot be carried out; it may still be changed, so this is not the end."""
    return _told(status, moment, Phase.FAILED, trouble.reason, {ConditionType.ACCEPTED: (_FALSE, trouble)})


def not_yet_accepted(status: FineTuneJobStatus, moment: Moment, trouble: Trouble) -> FineTuneJobStatus:
    """Tell what has to be there before it can be said whether the job is accepted."""
    conditions = {
        ConditionType.ACCEPTED: (ConditionStatus.UNKNOWN, trouble),
        ConditionType.PREPARED: (_FALSE, trouble),
    }
    return _told(status, moment, Phase.PENDING, trouble.reason, conditions)


def accepted(status: FineTuneJobStatus, moment: Moment, message: str) -> FineTuneJobStatus:
    """Tell that the job is accepted: from here on its spec is fixed, and its deadline counts."""
    if status.start_time is None:
        status = status.model_copy(update={"start_time": moment.text})
    if answer(status, ConditionType.ACCEPTED) is _TRUE:
        return status
    told = Trouble(ConditionReason.ACCEPTED, message)
    return _told(status, moment, Phase.PENDING, told.reason, {ConditionType.ACCEPTED: (_TRUE, told)})


def preparing(status: FineTuneJobStatus, moment: Moment, waits: Trouble | None) -> FineTuneJobStatus:
    """Tell that model and data are being prepared, or what keeps that from starting; then the job is pending again."""
    told = waits or Trouble(
        ConditionReason.PREPARING, "Model and data are being downloaded, checked and packed; no GPU is held."
    )
    phase = Phase.PREPARING if waits is None else Phase.PENDING
    return _told(status, moment, phase, told.reason, {ConditionType.PREPARED: (_FALSE, told)})


def prepare_failed(status: FineTuneJobStatus, moment: Moment, cause: Trouble, what_follows: str) -> FineTuneJobStatus:
    """Tell that preparing broke off, and when it starts again."""
    failures = (*status.prepare_failures, _failure(moment, cause))[-MAX_ATTEMPTS:]
    status = status.model_copy(update={"prepare_failures": failures})
    return _broken_off(status, moment, ConditionType.PREPARED, cause, what_follows)


def prepared(status: FineTuneJobStatus, moment: Moment, report: PreparedReport) -> FineTuneJobStatus:
    """Tell what prepare found and resolved."""
    told = Trouble(ConditionReason.PREPARED, summary_of(report))
    status = status.model_copy(update={"plan": report})
    return _told(status, moment, status.phase, status.reason, {ConditionType.PREPARED: (_TRUE, told)})


def waiting_to_start(status: FineTuneJobStatus, moment: Moment, waits: Trouble) -> FineTuneJobStatus:
    """Tell what has to be out of the way before an attempt can begin."""
    return _told(status, moment, Phase.PENDING, waits.reason, {ConditionType.RUNNING: (_FALSE, waits)})


def attempt_begun(status: FineTuneJobStatus, moment: Moment, number: int) -> FineTuneJobStatus:
    """Tell that the pods of an attempt are being made; it is a restart unless it is the first or resumes the job."""
    is_restart = bool(status.attempts) and status.attempts[-1].reason != ConditionReason.SUSPENDED
    attempts = (*status.attempts, Attempt(number=number, started=moment.text))
    return status.model_copy(
        update={"attempts": attempts[-MAX_ATTEMPTS:], "restarts": status.restarts + int(is_restart)}
    )


def starting(status: FineTuneJobStatus, moment: Moment, waits: Trouble | None) -> FineTuneJobStatus:
    """Tell that the training pods are starting, or what keeps them from it; then the job is pending again."""
    number = status.attempts[-1].number if status.attempts else 1
    what = "The training pods are starting." if number == 1 else f"The pods of attempt {number} are starting."
    told = waits or Trouble(ConditionReason.STARTING, what)
    phase = Phase.STARTING if waits is None else Phase.PENDING
    return _told(status, moment, phase, told.reason, {ConditionType.RUNNING: (_FALSE, told)})


def running(status: FineTuneJobStatus, moment: Moment, num_pods: int, but: str = "") -> FineTuneJobStatus:
    """Tell that all pods of the gang run, and what a person should know besides."""
    runs = "The training pod runs." if num_pods == 1 else f"All {num_pods} training pods run."
    told = Trouble(ConditionReason.RUNNING, f"{runs} {but}".strip())
    return _told(status, moment, Phase.RUNNING, told.reason, {ConditionType.RUNNING: (_TRUE, told)})


def storage_short(status: FineTuneJobStatus, moment: Moment, short: Trouble) -> FineTuneJobStatus:
    """Tell that a filesystem will be full before the training is done."""
    return _told(status, moment, status.phase, status.reason, {ConditionType.STORAGE_PRESSURE: (_TRUE, short)})


def storage_suffices(status: FineTuneJobStatus, moment: Moment) -> FineTuneJobStatus:
    """Tell that there is room again for what the training will still write."""
    told = Trouble(ConditionReason.STORAGE_SUFFICES, "There is room again for all that the training will still write.")
    return _told(status, moment, status.phase, status.reason, {ConditionType.STORAGE_PRESSURE: (_FALSE, told)})


def attempt_ended(status: FineTuneJobStatus, moment: Moment, cause: Trouble) -> FineTuneJobStatus:
    """Tell why the attempt under way has ended; nothing when none is."""
    if not status.attempts or status.attempts[-1].ended is not None:
        return status
    last = status.attempts[-1]
    ended = last.model_copy(
        update={
            "ended": moment.text,
            "reason": str(cause.reason),
            "message": _attempt_message(cause),
            "steps_lost": steps_lost(last.last_step, status.checkpoint),
        }
    )
    return status.model_copy(update={"attempts": (*status.attempts[:-1], ended)})


def restarting(status: FineTuneJobStatus, moment: Moment, cause: Trouble, what_follows: str) -> FineTuneJobStatus:
    """Tell that an attempt has failed, and when the next one starts."""
    told = Trouble(cause.reason, f"{cause.message} {what_follows}")
    conditions = {ConditionType.RUNNING: (_FALSE, told)}
    return _told(attempt_ended(status, moment, cause), moment, Phase.RESTARTING, told.reason, conditions)


@dataclass(frozen=True)
class Suspension:
    """Why a job is to leave its nodes, and what lets it go on."""

    reason_while_leaving: ConditionReason
    reason: ConditionReason
    why: str
    """A sentence."""
    remedy: str
    """What a person has to do, as the beginning of a sentence that ends with what follows."""


SUSPENDED_BY_USER = Suspension(
    reason_while_leaving=ConditionReason.SUSPENDING,
    reason=ConditionReason.SUSPENDED,
    why="spec.suspend was set to true.",
    remedy="Set spec.suspend to false",
)


def suspending(status: FineTuneJobStatus, moment: Moment, suspension: Suspension) -> FineTuneJobStatus:
    """Tell that the job is being suspended; its clock stops."""
    told = Trouble(
        suspension.reason_while_leaving,
        f"{suspension.why} The pods were told to stop; those that train write a checkpoint first. Nodes and GPUs are "
        "free as soon as they are gone.",
    )
    return _suspend(status, moment, Phase.SUSPENDING, (_FALSE, told), suspension)


def suspended(status: FineTuneJobStatus, moment: Moment, suspension: Suspension) -> FineTuneJobStatus:
    """Tell that nothing of the job runs any more."""
    whence = f"from the checkpoint of step {status.checkpoint.step}" if status.checkpoint else "where it stopped"
    told = Trouble(
        suspension.reason,
        f"{suspension.why} No pod of the job is left; claims and what is on them are kept. {suspension.remedy} to go "
        f"on {whence}.",
    )
    return _suspend(status, moment, Phase.SUSPENDED, (_TRUE, told), suspension)


def _suspend(
    status: FineTuneJobStatus,
    moment: Moment,
    phase: Phase,
    told: tuple[ConditionStatus, Trouble],
    suspension: Suspension,
) -> FineTuneJobStatus:
    _, trouble = told
    # However it was suspended, what follows is no restart: attempts know one reason for it.
    ended = Trouble(ConditionReason.SUSPENDED, suspension.why)
    status = attempt_ended(status, moment, ended).model_copy(update={"start_time": None})
    conditions = {ConditionType.SUSPENDED: told}
    if answer(status, ConditionType.PREPARED) is _FALSE:
        conditions[ConditionType.PREPARED] = (_FALSE, trouble)
    if status.has_trained:
        conditions[ConditionType.EVALUATED] = (_FALSE, trouble)
    elif answer(status, ConditionType.RUNNING) is not None:
        conditions[ConditionType.RUNNING] = (_FALSE, trouble)
    return _told(status, moment, phase, trouble.reason, conditions)


def resumed(status: FineTuneJobStatus, moment: Moment) -> FineTuneJobStatus:
    """Tell that a job which was suspended goes on; nothing when it was not."""
    known = next((found for found in status.conditions if found.type is ConditionType.SUSPENDED), None)
    if known is None or known.reason == ConditionReason.RESUMED:
        return status
    was_asked_for = known.reason in (ConditionReason.SUSPENDING, ConditionReason.SUSPENDED)
    why = "spec.suspend is false" if was_asked_for else "The budget allows it"
    told = Trouble(ConditionReason.RESUMED, f"{why}: the job goes on.")
    return _told(status, moment, Phase.PENDING, told.reason, {ConditionType.SUSPENDED: (_FALSE, told)})


def succeeded(status: FineTuneJobStatus, moment: Moment, report: TrainedReport | None) -> FineTuneJobStatus:
    """Tell that the training is done, what came out of it, and that this was all."""
    told = Trouble(ConditionReason.SUCCEEDED, what_came_out(report))
    conditions = {ConditionType.RUNNING: (_FALSE, told), ConditionType.COMPLETE: (_TRUE, told)}
    status = _told(_with_result(status, report), moment, Phase.SUCCEEDED, told.reason, conditions)
    return _finished(status, moment, told)


def trained(status: FineTuneJobStatus, moment: Moment, report: TrainedReport | None) -> FineTuneJobStatus:
    """Tell that the training is done and what came out of it; evaluating comes next."""
    ended = Trouble(ConditionReason.SUCCEEDED, what_came_out(report))
    status = attempt_ended(_with_result(status, report), moment, ended)
    told = Trouble(ConditionReason.TRAINED, ended.message)
    return _told(status, moment, Phase.PENDING, told.reason, {ConditionType.RUNNING: (_FALSE, told)})


def evaluating(status: FineTuneJobStatus, moment: Moment, waits: Trouble | None) -> FineTuneJobStatus:
    """Tell that the trained model is being scored, or what keeps that from starting; then the job is pending again."""
    told = waits or Trouble(
        ConditionReason.EVALUATING, "Base and tuned model are being scored on the rows that training has not seen."
    )
    phase = Phase.EVALUATING if waits is None else Phase.PENDING
    return _told(status, moment, phase, told.reason, {ConditionType.EVALUATED: (_FALSE, told)})


def with_findings(
    status: FineTuneJobStatus, evaluation: EvaluationReport | None, export: ExportReport | None
) -> FineTuneJobStatus:
    """Tell what was measured and exported, beside the result of the training."""
    if status.result is None:
        return status
    result = status.result.model_copy(update={"evaluation": evaluation, "export": export})
    return status.model_copy(update={"result": result})


def evaluate_failed(status: FineTuneJobStatus, moment: Moment, cause: Trouble, what_follows: str) -> FineTuneJobStatus:
    """Tell that evaluating broke off, and when it starts again."""
    failures = (*status.evaluate_failures, _failure(moment, cause))[-MAX_ATTEMPTS:]
    status = status.model_copy(update={"evaluate_failures": failures})
    return _broken_off(status, moment, ConditionType.EVALUATED, cause, what_follows)


def evaluated(status: FineTuneJobStatus, moment: Moment, findings: str) -> FineTuneJobStatus:
    """Tell what the tuned model is worth, and that this was all."""
    trained = status.attempts[-1].message or "The training is done."
    told = Trouble(ConditionReason.SUCCEEDED, f"{trained} Evaluation: {findings}.")
    conditions = {
        ConditionType.EVALUATED: (_TRUE, Trouble(ConditionReason.EVALUATED, findings)),
        ConditionType.COMPLETE: (_TRUE, told),
    }
    return _finished(_told(status, moment, Phase.SUCCEEDED, told.reason, conditions), moment, told)


def failed(status: FineTuneJobStatus, moment: Moment, cause: Trouble, why_no_more: str = "") -> FineTuneJobStatus:
    """Tell that the job failed, why, and why it is not tried again where that needs saying."""
    told = Trouble(cause.reason, f"{cause.message} {why_no_more}".strip())
    conditions = {ConditionType.FAILED: (_TRUE, told)}
    if answer(status, ConditionType.PREPARED) is not _TRUE:
        conditions[ConditionType.PREPARED] = (_FALSE, told)
    if status.has_trained:
        conditions[ConditionType.EVALUATED] = (_FALSE, told)
    elif answer(status, ConditionType.RUNNING) is not None:
        conditions[ConditionType.RUNNING] = (_FALSE, told)
    return _finished(_told(status, moment, Phase.FAILED, cause.reason, conditions), moment, cause)


def answer(status: FineTuneJobStatus, condition_type: ConditionType) -> ConditionStatus | None:
    """Return the answer of a condition, or None when it was not given yet."""
    return next((condition.status for condition in status.conditions if condition.type is condition_type), None)


def answered_at(status: FineTuneJobStatus, condition_type: ConditionType) -> datetime | None:
    """Return when the answer of a condition last changed, or None when it was not given yet."""
    return next(
        (
            datetime.fromisoformat(condition.last_transition_time)
            for condition in status.conditions
            if condition.type is condition_type
        ),
        None,
    )


def is_finished(status: FineTuneJobStatus) -> bool:
    """Whether the job has succeeded or failed for good."""
    return _TRUE in (answer(status, ConditionType.COMPLETE), answer(status, ConditionType.FAILED))


_TRUE, _FALSE = ConditionStatus.TRUE, ConditionStatus.FALSE
Answers = dict[ConditionType, tuple[ConditionStatus, Trouble]]


def _told(
    status: FineTuneJobStatus, moment: Moment, phase: Phase | None, reason: str | None, answers: Answers
) -> FineTuneJobStatus:
    conditions = {condition.type: condition for condition in status.conditions}
    for condition_type, (condition_status, told) in answers.items():
        known = conditions.get(condition_type)
        unchanged = known is not None and known.status is condition_status
        conditions[condition_type] = Condition(
            type=condition_type,
            status=condition_status,
            reason=told.reason,
            message=told.message[:_MAX_MESSAGE_CHARACTERS],
            observed_generation=moment.generation,
            last_transition_time=known.last_transition_time if known is not None and unchanged else moment.text,
        )
    return status.model_copy(
        update={
            "phase": phase,
            "reason": str(reason) if reason is not None else None,
            "observed_generation": moment.generation,
            "conditions": tuple(conditions[condition] for condition in ConditionType if condition in conditions),
        }
    )


def _broken_off(
    status: FineTuneJobStatus, moment: Moment, stage: ConditionType, cause: Trouble, what_follows: str
) -> FineTuneJobStatus:
    """Tell that a stage of one pod broke off and what follows; starting anew is a restart."""
    told = Trouble(cause.reason, f"{cause.message} {what_follows}")
    status = status.model_copy(update={"restarts": status.restarts + 1})
    return _told(status, moment, Phase.RESTARTING, told.reason, {stage: (_FALSE, told)})


def _finished(status: FineTuneJobStatus, moment: Moment, cause: Trouble) -> FineTuneJobStatus:
    return attempt_ended(status, moment, cause).model_copy(update={"completion_time": moment.text})


def _with_result(status: FineTuneJobStatus, report: TrainedReport | None) -> FineTuneJobStatus:
    if report is None:
        return status
    return with_result(status, report).model_copy(update={"result": Result(**report.model_dump())})


def _failure(moment: Moment, cause: Trouble) -> Failure:
    return Failure(time=moment.text, reason=str(cause.reason), message=_attempt_message(cause))


def _attempt_message(cause: Trouble) -> str:
    return cause.message[:_MAX_ATTEMPT_MESSAGE_CHARACTERS]
