"""Suspending: everything that runs is taken down, with time for a checkpoint, and nothing is made."""

from finetune_operator import status as tell
from finetune_operator.api.status import ConditionStatus, ConditionType, FineTuneJobStatus
from finetune_operator.decide import children
from finetune_operator.decide.attempts import under_way
from finetune_operator.decide.decision import LOOK_AGAIN_SECONDS, Decision, Look
from finetune_operator.decide.ending import end_of_attempt, with_last_word
from finetune_operator.decide.prepare import report_of


def suspend(look: Look, status: FineTuneJobStatus, suspension: tell.Suspension) -> Decision:
    """Take the next step towards a job of which no pod is left; it keeps its claims and what is on them.

    What had ended by itself is told first: a gang that is done is not trained once more.
    """
    status = with_last_word(look, status)
    ending = end_of_attempt(look, status)
    if ending is not None:
        if tell.is_finished(ending.status) or under_way(ending.status) is not None:
            return ending
        status = ending.status
    prepare = look.observed.prepare
    if tell.answer(status, ConditionType.PREPARED) is not ConditionStatus.TRUE and (report := report_of(prepare)):
        status = tell.prepared(status, look.moment, report)
    leaving = children.former_gangs(look.observed, ())
    if prepare is not None and tell.answer(status, ConditionType.PREPARED) is not ConditionStatus.TRUE:
        leaving = (prepare.child, *leaving)
    if look.observed.evaluate is not None:
        leaving = (look.observed.evaluate.child, *leaving)
    if leaving or look.observed.training_pods:
        status = tell.suspending(status, look.moment, suspension)
        return Decision(status, delete=children.not_yet_leaving(leaving), wake_after_seconds=LOOK_AGAIN_SECONDS)
    return Decision(tell.suspended(status, look.moment, suspension))
