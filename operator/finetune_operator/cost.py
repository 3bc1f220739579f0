"""What the GPUs' time and the storage cost: money beside the ledger of GPU-seconds.

Pure. Whenever the ledger grows (see `accounting`), what it grew by is charged at the price that was in force, and the
storage with it. So money and time say the same, and nothing is written while nothing changes; what has been spent in
between is worked out from the prices that the status keeps (`spent`).

    queued      costs nothing: no GPU is held
    starting    all GPUs, while no step is done
    productive  steps that count
    lost        steps that had to be done again, and the time from a failure to the next gang
    storage     claims that the operator made for the job, from when it was accepted until it has ended

The price of a GPU-hour is settled when all pods of an attempt run, because only then it is known on which nodes, and it
holds for the attempt. Sums are rounded up to a millionth, so that what was spent never shrinks when it is added up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_UP, Decimal
from math import ceil

from finetune_operator.accounting import gpu_seconds
from finetune_operator.api.status import Accounting, Activity, Cost, FineTuneJobStatus, Phase
from finetune_operator.plan import Plan
from finetune_operator.pricing import HOURS_OF_A_MONTH, Pricing
from finetune_operator.quantity import quantity_value

_GIB = Decimal(1024) ** 3
_SECONDS_OF_AN_HOUR = Decimal(3600)
_MILLIONTH = Decimal("0.000001")
_PAID_KINDS = ("starting", "productive", "lost")
_PAID_ACTIVITIES = (Activity.STARTING, Activity.TRAINING, Activity.RECOVERING)
_ENDED = (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True)
class Prices:
    """What a job is charged from now on."""

    currency: str
    gpu_hour: Decimal
    """Of a GPU on the nodes that the gang runs on, on average; known for certain once all its pods run."""
    storage_hour: Decimal
    """Of all claims that the operator made for the job."""


def prices_of(plan: Plan, nodes: Sequence[Mapping[str, str]]) -> Prices | None:
    """Return what a job is charged, or None when the administrator named no prices.

    Args:
        plan: the job, and the prices.
        nodes: labels of the nodes that the gang runs on, as far as they were read. What the job selects its nodes by
            holds for each of them anyway.
    """
    pricing, selected_by = plan.pricing, plan.job.spec.compute.node_selector
    if pricing is None:
        return None
    by_node = [pricing.of_gpu_hour({**selected_by, **labels}) for labels in nodes or ({},)]
    return Prices(pricing.currency, _rounded(sum(by_node, Decimal()) / len(by_node)), _storage_hour(plan, pricing))


def attempt_to_price(plan: Plan) -> int | None:
    """Return the attempt whose nodes have to be known to say what a GPU-hour costs; None when none have."""
    status = plan.job.status
    if plan.pricing is None or not plan.pricing.differs_by_node or not status.attempts:
        return None
    cost, number = status.accounting.cost if status.accounting is not None else None, status.attempts[-1].number
    return number if cost is None or cost.priced_attempt != number else None


def charged(
    before: FineTuneJobStatus, after: FineTuneJobStatus, prices: Prices | None, now: datetime
) -> FineTuneJobStatus:
    """Return the status that is about to be told with what its ledger of GPU-seconds has grown by charged.

    Args:
        before: what was told last, with its sums.
        after: what is to be told now, its ledger up to date.
        prices: what holds from now on. Without them, or in another currency, a job keeps those that it has.
        now: the time.
    """
    ledger = after.accounting
    if ledger is None or (ledger == before.accounting and ledger.cost is not None and after.phase not in _ENDED):
        return after
    cost = ledger.cost
    if cost is None:
        if prices is None:
            return after
        cost = Cost(
            currency=prices.currency,
            storage_hour_price=_money(prices.storage_hour),
            storage_since=before.start_time or after.start_time or _text(now),
        )
    else:
        cost = _with_gpus_charged(cost, before.accounting, ledger)
    cost = _with_storage_charged(cost, now)
    if prices is not None and prices.currency == cost.currency:
        cost = cost.model_copy(update={"storage_hour_price": _money(prices.storage_hour)})
        cost = _with_attempt_priced(cost, after, prices)
    return after.model_copy(update={"accounting": ledger.model_copy(update={"cost": cost})})


def spent(ledger: Accounting, num_gpus: int, now: datetime) -> Decimal:
    """Return what has been spent by now, in the currency of the ledger: the sums, and what has gone on since."""
    cost = ledger.cost
    if cost is None:
        return Decimal(0)
    on_gpus = _gpu_second(ledger, cost) * num_gpus * _seconds_between(ledger.since, now)
    return Decimal(cost.total) + on_gpus + _storage_second(cost) * _seconds_between(cost.storage_since, now)


def spent_at(ledger: Accounting, num_gpus: int, budget: Decimal, now: datetime) -> datetime | None:
    """Return when a budget will be spent if all goes on as it does; None when it never will."""
    cost = ledger.cost
    if cost is None:
        return None
    per_second = _gpu_second(ledger, cost) * num_gpus + _storage_second(cost)
    left = budget - spent(ledger, num_gpus, now)
    if left <= 0:
        return now
    if not per_second:
        return None
    seconds = min(ceil(left / per_second), 10**9)  # a datetime ends in the year 9999
    return now.replace(microsecond=0) + timedelta(seconds=seconds)


def money_by_kind(cost: Cost | None) -> dict[str, Decimal]:
    """Return the sums by kind."""
    kinds = (*_PAID_KINDS, "storage")
    return {kind: Decimal(getattr(cost, kind)) if cost is not None else Decimal(0) for kind in kinds}


def growth_between(before: Cost | None, after: Cost | None) -> dict[str, Decimal]:
    """Return by how much each kind has grown; one from which something was taken away has not."""
    old, new = money_by_kind(before), money_by_kind(after)
    return {kind: new[kind] - old[kind] for kind in new if new[kind] > old[kind]}


def _with_gpus_charged(cost: Cost, before: Accounting | None, after: Accounting) -> Cost:
    old, new = gpu_seconds(before), gpu_seconds(after)
    grown = {kind: new[kind] - old[kind] for kind in _PAID_KINDS}
    second = Decimal(cost.gpu_hour_price or 0) / _SECONDS_OF_AN_HOUR
    sums = money_by_kind(cost)
    if grown["productive"] < 0:
        # Steps have to be done again: what was paid for them is lost, at the mean price of the seconds that counted.
        again = -grown["productive"]
        taken = _rounded(sums["productive"] * again / old["productive"])
        sums["productive"] -= taken
        sums["lost"] += taken
        grown |= {"productive": 0, "lost": grown["lost"] - again}
    for kind in _PAID_KINDS:
        sums[kind] += _rounded(second * grown[kind])
    return _with_sums(cost, sums)


def _with_storage_charged(cost: Cost, now: datetime) -> Cost:
    sums = money_by_kind(cost)
    sums["storage"] += _rounded(_storage_second(cost) * _seconds_between(cost.storage_since, now))
    until = max(now.replace(microsecond=0), datetime.fromisoformat(cost.storage_since))
    return _with_sums(cost, sums).model_copy(update={"storage_since": _text(until)})


def _with_attempt_priced(cost: Cost, status: FineTuneJobStatus, prices: Prices) -> Cost:
    ledger, number = status.accounting, status.attempts[-1].number
    runs = ledger is not None and ledger.activity in (Activity.STARTING, Activity.TRAINING)
    if not runs or cost.priced_attempt == number:
        return cost
    return cost.model_copy(update={"gpu_hour_price": _money(prices.gpu_hour), "priced_attempt": number})


def _with_sums(cost: Cost, sums: Mapping[str, Decimal]) -> Cost:
    amounts = {**sums, "total": sum(sums.values(), Decimal())}
    return cost.model_copy(update={name: _money(amount) for name, amount in amounts.items()})


def _storage_hour(plan: Plan, pricing: Pricing) -> Decimal:
    """Return what the claims cost an hour that were made for the job; one that was there serves others too."""
    new_claims = [disk.new for disk in plan.disks if disk.new is not None]
    months = sum(
        (quantity_value(claim.size) / _GIB * pricing.of_gib_month(claim.storage_class_name) for claim in new_claims),
        Decimal(),
    )
    return _rounded(months / HOURS_OF_A_MONTH)


def _gpu_second(ledger: Accounting, cost: Cost) -> Decimal:
    hour = Decimal(cost.gpu_hour_price or 0) if ledger.activity in _PAID_ACTIVITIES else Decimal(0)
    return hour / _SECONDS_OF_AN_HOUR


def _storage_second(cost: Cost) -> Decimal:
    return Decimal(cost.storage_hour_price or 0) / _SECONDS_OF_AN_HOUR


def _seconds_between(since: str, now: datetime) -> int:
    # Whole seconds, as the ledger counts them: what is spent by now is what will be added up.
    return max(int((now.replace(microsecond=0) - datetime.fromisoformat(since)).total_seconds()), 0)


def _rounded(amount: Decimal) -> Decimal:
    return amount.quantize(_MILLIONTH, rounding=ROUND_UP)


def _money(amount: Decimal) -> str:
    """Return an amount without an exponent and without needless zeros: `12.5`, `0`."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
