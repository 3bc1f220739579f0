"""The story of a job: accepted, prepared, trained, evaluated; suspended and resumed, and finished."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from finetune_operator import status as tell
from finetune_operator.accounting import accounted
from finetune_operator.api.status import ConditionStatus, ConditionType, FineTuneJobStatus, Phase
from finetune_operator.causes import Trouble
from finetune_operator.cost import charged, prices_of
from finetune_operator.decide import children
from finetune_operator.decide.budget import spent_time, why_held_back
from finetune_operator.decide.decision import LOOK_AGAIN_SECONDS, Decision, Look, Timing
from finetune_operator.decide.ending import break_off, end_of_attempt
from finetune_operator.decide.evaluate import evaluate
from finetune_operator.decide.prepare import prepare
from finetune_operator.decide.suspend import suspend
from finetune_operator.decide.train import train
from finetune_operator.names import ConditionReason
from finetune_operator.observe import Observed
from finetune_operator.plan import Plan
from finetune_operator.progress import Heard
from finetune_operator.status import Moment
from finetune_operator.workloads import JobState


def refuse(status: FineTuneJobStatus, problems: Sequence[str], moment: Moment) -> Decision:
    """Decide on a job whose spec cannot be carried out: no object is made, every problem is told."""
    if tell.is_finished(status):
        return Decision(status)
    message = "; ".join(problems) + ". Change the spec and apply it again."
    return Decision(tell.refused(status, moment, Trouble(ConditionReason.INVALID_SPEC, message)))


def decide(plan: Plan, observed: Observed, now: datetime, timing: Timing, heard: Heard | None = None) -> Decision:
    """Decide what happens next to a job.

    Args:
        plan: what the operator will do for the job, and with it the job and what was told of it so far.
        observed: what is there.
        now: the time.
        timing: how often and for how long, as an administrator set it.
        heard: what rank 0 of the attempt under way said, when it was asked in this round.
    """
    told = plan.job.status
    look = Look(plan, observed, Moment(now, plan.job.metadata.generation), timing, heard)
    decision = _after_the_end(look, told) if tell.is_finished(told) else _on_the_way(look, told)
    if not tell.is_finished(told):
        status = accounted(told, decision.status, now, plan.num_gpus)
        status = charged(told, status, prices_of(plan, observed.nodes), now)
        # What follows the end is decided on the end as it was told, and nothing else may wake the job for that.
        wakes_at = now if tell.is_finished(status) else spent_time(look, status)
        decision = replace(decision, status=status).waking_at(wakes_at, now)
    return replace(decision, force=children.abandoned_pods(look))


def _on_the_way(look: Look, status: FineTuneJobStatus) -> Decision:
    status = tell.about(status, look.plan.model)
    if look.plan.job.spec.suspend:
        return suspend(look, status, tell.SUSPENDED_BY_USER)
    held_back = why_held_back(look, status)
    if held_back is not None:
        decision = suspend(look, status, held_back)
        # A gang that has trained to the end just now frees its GPUs by itself, and what it trained is evaluated.
        if not decision.status.has_trained:
            return decision
    was_suspended = status.phase is Phase.SUSPENDED
    status = tell.resumed(status, look.moment)
    if was_suspended:
        # Told before anything is made: an operator that is killed in between must not leave pods of a job that is
        # called suspended, whose GPUs nobody would count.
        return Decision(status, wake_after_seconds=0.0)
    deadline = _deadline(look, status)
    if deadline is not None and look.now >= deadline:
        return _exceed_deadline(look, status)
    if look.plan.missing_claims:
        return _wait_for_claims(look, status).waking_at(deadline, look.now)
    lacking = look.observed.lacking
    if lacking is not None and tell.answer(status, ConditionType.ACCEPTED) is not ConditionStatus.TRUE:
        # Until it is accepted the spec can be changed, and with it what the job needs.
        status = tell.not_yet_accepted(status, look.moment, lacking)
        return Decision(status, wake_after_seconds=LOOK_AGAIN_SECONDS)
    status = tell.accepted(status, look.moment, _acceptance(look.plan))
    return _stages(look, status).waking_at(_deadline(look, status), look.now)


def _stages(look: Look, status: FineTuneJobStatus) -> Decision:
    """Take the next step of the stage that the job is in; one that is done goes over into the next at once."""
    if tell.answer(status, ConditionType.PREPARED) is not ConditionStatus.TRUE:
        decision = prepare(look, status)
        if tell.answer(decision.status, ConditionType.PREPARED) is not ConditionStatus.TRUE:
            return decision
        status = decision.status
    if not status.has_trained:
        decision = train(look, status)
        if tell.is_finished(decision.status) or not decision.status.has_trained:
            return decision
        status = decision.status
    return evaluate(look, status)


def _wait_for_claims(look: Look, status: FineTuneJobStatus) -> Decision:
    if tell.answer(status, ConditionType.ACCEPTED) is ConditionStatus.TRUE:
        # Pods that hold the claim hold it still; those that do not will say themselves what they wait for.
        return Decision(status, wake_after_seconds=LOOK_AGAIN_SECONDS)
    missing = ", ".join(look.plan.missing_claims)
    trouble = Trouble(
        ConditionReason.CLAIM_MISSING,
        f"PersistentVolumeClaim {missing} does not exist in namespace {look.plan.namespace}. Create it, or change "
        "claimName in spec.storage.",
    )
    return Decision(tell.not_yet_accepted(status, look.moment, trouble), wake_after_seconds=LOOK_AGAIN_SECONDS)


def _acceptance(plan: Plan) -> str:
    device = "GPU" if plan.gpus_per_node else "CPU process"
    shape = f"{plan.num_nodes} x {plan.num_processes_per_node} {device}."
    return " ".join((shape, *plan.reasons))


def _deadline(look: Look, status: FineTuneJobStatus) -> datetime | None:
    seconds = look.policy.active_deadline_seconds
    if seconds is None or status.start_time is None:
        return None
    return datetime.fromisoformat(status.start_time) + timedelta(seconds=seconds)


def _exceed_deadline(look: Look, status: FineTuneJobStatus) -> Decision:
    ending = end_of_attempt(look, status)
    if ending is not None and tell.is_finished(ending.status):
        return ending  # it had ended by itself, and only now somebody looks
    if ending is not None and ending.status.has_trained:
        status = ending.status
    cause = Trouble(
        ConditionReason.DEADLINE_EXCEEDED,
        f"The job was not done within spec.runPolicy.activeDeadlineSeconds ({look.policy.active_deadline_seconds}). "
        "Its pods were told to stop; those that train write a checkpoint first.",
    )
    decision = break_off(look, status, cause)
    one_pod_jobs = [job for job in (look.observed.prepare, look.observed.evaluate) if job is not None]
    active = [job.child for job in one_pod_jobs if job.state is JobState.ACTIVE]
    return replace(decision, delete=(*decision.delete, *children.not_yet_leaving(active)))


def _after_the_end(look: Look, status: FineTuneJobStatus) -> Decision:
    """Free what a finished job still holds, and delete it when its time is over: children first."""
    observed, ttl_seconds = look.observed, look.policy.ttl_seconds_after_finished
    if ttl_seconds is None or status.completion_time is None:
        return Decision(status, delete=children.holding_nodes(observed))
    goes_at = datetime.fromisoformat(status.completion_time) + timedelta(seconds=ttl_seconds)
    if look.now < goes_at:
        return Decision(status, delete=children.holding_nodes(observed)).waking_at(goes_at, look.now)
    one_pod_jobs = [job.child for job in (observed.prepare, observed.evaluate) if job is not None]
    left = (*one_pod_jobs, *children.former_gangs(observed, ()))
    if left or observed.training_pods:
        return Decision(status, delete=children.not_yet_leaving(left), wake_after_seconds=LOOK_AGAIN_SECONDS)
    return Decision(status, delete_job=True, wake_after_seconds=LOOK_AGAIN_SECONDS)
