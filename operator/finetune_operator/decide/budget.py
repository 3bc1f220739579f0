"""The budget: what a job may cost, and that it is suspended when it has cost so much.

The spec stays the user's own: the job is held back by its budget, and spec.suspend is not written. So who applies the
same manifest again changes nothing, and a higher budget alone lets the job go on.
"""

from datetime import datetime
from decimal import Decimal

from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.cost import spent, spent_at
from finetune_operator.decide.decision import Look
from finetune_operator.names import ConditionReason
from finetune_operator.status import Suspension


def why_held_back(look: Look, status: FineTuneJobStatus) -> Suspension | None:
    """Return why a job with a budget may not go on, or None when it may, or has no budget.

    What is trained is evaluated all the same: the GPUs of the gang are free by then.
    """
    budget, ledger = look.policy.budget, status.accounting
    if budget is None or status.has_trained:
        return None
    if ledger is None or ledger.cost is None:
        return None if look.plan.pricing is not None else _without_prices(budget)
    if spent(ledger, look.plan.num_gpus, look.now) < Decimal(budget):
        return None
    return Suspension(
        reason_while_leaving=ConditionReason.BUDGET_SPENT,
        reason=ConditionReason.BUDGET_SPENT,
        why=f"The budget of {budget} {ledger.cost.currency} (spec.runPolicy.budget) is spent; status.accounting.cost "
        "says on what.",
        remedy="Raise spec.runPolicy.budget",
    )


def spent_time(look: Look, status: FineTuneJobStatus) -> datetime | None:
    """Return when the budget will be spent if all goes on as it does; None when it will not, or there is none."""
    budget, ledger = look.policy.budget, status.accounting
    if budget is None or ledger is None or status.has_trained or look.plan.job.spec.suspend:
        return None
    time = spent_at(ledger, look.plan.num_gpus, Decimal(budget), look.now)
    return time if time is not None and time > look.now else None


def _without_prices(budget: str) -> Suspension:
    return Suspension(
        reason_while_leaving=ConditionReason.PRICES_MISSING,
        reason=ConditionReason.PRICES_MISSING,
        why=f"spec.runPolicy.budget is {budget}, and the operator has no prices to hold it against: what a job costs "
        "cannot be seen, so it is not begun.",
        remedy="Have `pricing` set in the operator's chart, or take spec.runPolicy.budget out,",
    )
