"""The second stage: a gang for each attempt, until one of them has trained to the end.

An attempt is told to have ended before anything of it is deleted, and nothing of the next one is made before the last
pod of it is gone: two gangs would hold twice the GPUs and write to one directory.
"""

from datetime import timedelta

from finetune_operator import status as tell
from finetune_operator.api.status import ConditionStatus, ConditionType, FineTuneJobStatus
from finetune_operator.build import wanted
from finetune_operator.decide import children
from finetune_operator.decide.attempts import earliest_start, next_number, under_way
from finetune_operator.decide.decision import LOOK_AGAIN_SECONDS, Decision, Look
from finetune_operator.decide.ending import end_of_attempt, never_heard, with_last_word
from finetune_operator.decide.questions import ask_again_after_seconds
from finetune_operator.decide.storage import watch_storage
from finetune_operator.progress import with_report
from finetune_operator.workloads import JobState
from finetune_trainer.contract import series

# Until its exporter serves, a process has to import torch.
_ORDINARY_SILENCE = timedelta(minutes=5)
_WORDS_FOR_SILENCE = (
    f"Rank 0 does not answer on port {series.METRICS_PORT}, so that neither its progress nor a stall can be seen. "
    "Let the operator's pod reach it: look for a NetworkPolicy in the namespace."
)


def train(look: Look, status: FineTuneJobStatus) -> Decision:
    """Take the next step of training."""
    status = with_last_word(look, status)
    ending = end_of_attempt(look, status)
    if ending is not None:
        return ending
    attempt = under_way(status)
    if attempt is None:
        return _begin(look, status)
    return _keep_up(look, status, attempt.number)


def _begin(look: Look, status: FineTuneJobStatus) -> Decision:
    """Make the next attempt's gang, as soon as nothing is left of the others and the delay is over."""
    number = next_number(status)
    # A gang of this number was made before the operator was stopped, and it could not tell so any more.
    if number not in look.observed.gangs:
        former = children.former_gangs(look.observed, wanted.gang(look.plan, number))
        pods = children.former_pods(look.observed, number)
        if former or pods:
            if pods is not None and not _is_restarting(status):
                status = tell.waiting_to_start(status, look.moment, pods)
            leaving = children.not_yet_leaving(former)
            return Decision(status, delete=leaving, wake_after_seconds=LOOK_AGAIN_SECONDS)
        starts_at = earliest_start(status.attempts)
        if starts_at is not None and look.now < starts_at:
            return Decision(status).waking_at(starts_at, look.now)
        if look.observed.lacking is not None:
            status = tell.waiting_to_start(status, look.moment, look.observed.lacking)
            return Decision(status, wake_after_seconds=LOOK_AGAIN_SECONDS)
    return _keep_up(look, tell.attempt_begun(status, look.moment, number), number)


def _keep_up(look: Look, status: FineTuneJobStatus, number: int) -> Decision:
    """Make what is missing of an attempt, and tell how far it is."""
    plan, observed, moment = look.plan, look.observed, look.moment
    objects = [*wanted.shared_by_stages(plan), *wanted.gang(plan, number)]
    gang = observed.gangs.get(number, ())
    whole = len(gang) == len(wanted.workloads(plan, number))
    obstacle = observed.lacking or children.obstacle(objects, observed)
    obstacle = obstacle or (None if whole else children.former_pods(observed, number))
    apply = children.due(objects, observed) if obstacle is None else ()
    if whole and all(job.running or job.state is JobState.SUCCEEDED for job in gang):
        status = _running(look, status)
        return Decision(
            status, apply, wake_after_seconds=ask_again_after_seconds(plan.job, status, look.now, look.timing)
        )
    if obstacle is not None:
        return Decision(tell.starting(status, moment, obstacle), wake_after_seconds=LOOK_AGAIN_SECONDS)
    waits = observed.claims or next((job.waits for job in gang if job.waits is not None), None)
    return Decision(
        tell.starting(status, moment, waits),
        apply,
        wake_after_seconds=children.wake_while_waiting(status, waits, gang, look),
    )


def _running(look: Look, status: FineTuneJobStatus) -> FineTuneJobStatus:
    runs = tell.answer(status, ConditionType.RUNNING) is ConditionStatus.TRUE
    if runs and look.heard is None:
        return status  # what was told when rank 0 was last asked holds until it is asked again
    if look.heard is not None and look.heard.report is not None:
        status = with_report(status, look.heard.report)
        status = watch_storage(status, look.plan.job.spec, look.heard.report, look.moment)
    running_since = tell.answered_at(status, ConditionType.RUNNING) if runs else None
    is_deaf = never_heard(look, status) and running_since is not None and look.now > running_since + _ORDINARY_SILENCE
    return tell.running(status, look.moment, look.plan.num_nodes, _WORDS_FOR_SILENCE if is_deaf else "")


def _is_restarting(status: FineTuneJobStatus) -> bool:
    return earliest_start(status.attempts) is not None
