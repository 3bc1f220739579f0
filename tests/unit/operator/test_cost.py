"""What a job has cost, in hand-made histories of it; every sum was worked out by hand.

A GPU-hour costs 3.60, which is 0.001 a second, so 16 GPUs cost 0.016 a second. The job's storage costs 0.001 a second.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from finetune_operator.accounting import accounted
from finetune_operator.api.status import Accounting, Attempt, Checkpoint, Cost, FineTuneJobStatus, Phase
from finetune_operator.cost import Prices, attempt_to_price, charged, growth_between, prices_of, spent, spent_at
from finetune_operator.pricing import parse_pricing
from tests.factories import SETTINGS, make_job_plan

START = datetime(2026, 11, 27, 9, 0, tzinfo=UTC)
NUM_GPUS = 16
PRICES = Prices(currency="USD", gpu_hour=Decimal("3.6"), storage_hour=Decimal("3.6"))
ON_GPUS_ALONE = replace(PRICES, storage_hour=Decimal(0))


@dataclass(frozen=True)
class Told:
    """What is told so many seconds after the job was accepted."""

    at: float
    phase: Phase
    attempt: int = 1
    resumed_from: int | None = None
    checkpoint: tuple[int, float] | None = None
    """Step, and seconds after the start."""
    prices: Prices | None = PRICES


def moment(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def play(*story: Told) -> FineTuneJobStatus:
    status = FineTuneJobStatus(phase=Phase.PREPARING, start_time="2026-11-27T09:00:00Z")
    for told in story:
        status = tell(status, told)
    return status


def tell(status: FineTuneJobStatus, told: Told) -> FineTuneJobStatus:
    attempts = tuple(
        Attempt(number=number, started="2026-11-27T09:00:00Z", resumed_from_step=told.resumed_from)
        for number in range(1, told.attempt + 1)
    )
    if told.phase is Phase.SUCCEEDED:
        attempts = (*attempts[:-1], attempts[-1].model_copy(update={"reason": "Succeeded"}))
    after = status.model_copy(update={"phase": told.phase, "attempts": attempts})
    if told.checkpoint is not None:
        step, seconds = told.checkpoint
        after = after.model_copy(update={"checkpoint": Checkpoint(step=step, time=moment(seconds).isoformat())})
    after = accounted(status, after, moment(told.at), NUM_GPUS)
    return charged(status, after, told.prices, moment(told.at))


def ledger_of(status: FineTuneJobStatus) -> Accounting:
    assert status.accounting is not None
    return status.accounting


def cost_of(status: FineTuneJobStatus) -> Cost:
    cost = ledger_of(status).cost
    assert cost is not None
    return cost


UNTIL_IT_TRAINS = [
    Told(360, Phase.STARTING),
    Told(400, Phase.RUNNING),
    Told(450, Phase.RUNNING, resumed_from=0),
]


def second_attempt(starts: float, runs: float, steps: float, resumed_from: int, prices: Prices = PRICES) -> list[Told]:
    """A second gang: when its pods start, when all of them run, and when its first step begins."""
    gang = Told(starts, Phase.STARTING, attempt=2, prices=prices)
    running = replace(gang, at=runs, phase=Phase.RUNNING)
    return [gang, running, replace(running, at=steps, resumed_from=resumed_from)]


# (story, starting, productive, lost, storage, total)
HISTORIES: dict[str, tuple[list[Told], tuple[str, str, str, str, str]]] = {
    "nothing goes wrong for an hour": (
        # 50 s starting: 0.8. 3,150 s of steps: 50.4. An hour of storage: 3.6.
        [*UNTIL_IT_TRAINS, Told(3600, Phase.SUCCEEDED, resumed_from=0)],
        ("0.8", "50.4", "0", "3.6", "54.8"),
    ),
    "a node dies 40 seconds after a checkpoint": (
        # Steps until the checkpoint at 1,450 s: 1,000 s, 16. The 40 s after it and 60 s until the next gang: 1.6 lost.
        # The second attempt starts for 50 s, 0.8 more, and trains for 250 s, 4 more. 1,860 s of storage.
        [
            *UNTIL_IT_TRAINS,
            Told(1455, Phase.RUNNING, resumed_from=0, checkpoint=(100, 1450)),
            Told(1490, Phase.RESTARTING, resumed_from=0, checkpoint=(100, 1450)),
            *second_attempt(1550, 1560, 1610, resumed_from=100),
            Told(1860, Phase.SUCCEEDED, attempt=2, resumed_from=100),
        ],
        ("1.6", "20", "1.6", "1.86", "25.06"),
    ),
    "the newest checkpoint is damaged, and half of the steps are done again": (
        # 1,000 s of steps are secured, 16, of which half turn out lost: 8. The 100 s until the next gang: 1.6.
        [
            *UNTIL_IT_TRAINS,
            Told(1450, Phase.RUNNING, resumed_from=0, checkpoint=(100, 1450)),
            Told(1450, Phase.RESTARTING, resumed_from=0, checkpoint=(100, 1450)),
            *second_attempt(1550, 1560, 1560, resumed_from=50),
            Told(2060, Phase.SUCCEEDED, attempt=2, resumed_from=50),
        ],
        ("0.8", "16", "9.6", "2.06", "28.46"),
    ),
    "it is suspended for a day, when its storage alone costs": (
        # Steps until the checkpoint at 1,450 s: 16; the 10 s after it: 0.16 lost. 88,000 s of storage.
        [
            *UNTIL_IT_TRAINS,
            Told(1445, Phase.SUSPENDING, resumed_from=0),
            Told(1460, Phase.SUSPENDED, resumed_from=0, checkpoint=(100, 1450)),
            *second_attempt(87860, 87900, 87900, resumed_from=100),
            Told(88000, Phase.SUCCEEDED, attempt=2, resumed_from=100),
        ],
        ("0.8", "17.6", "0.16", "88", "106.56"),
    ),
    "the second attempt runs on cheaper nodes": (
        # 100 s of steps at 0.016 are lost before the first checkpoint, and 50 s until the next gang: 2.4. Then 100 s
        # at 0.004, and storage that costs nothing any more.
        [
            *UNTIL_IT_TRAINS,
            Told(550, Phase.RESTARTING, resumed_from=0),
            *second_attempt(600, 600, 600, resumed_from=0, prices=replace(ON_GPUS_ALONE, gpu_hour=Decimal("0.9"))),
            Told(700, Phase.SUCCEEDED, attempt=2, resumed_from=0, prices=ON_GPUS_ALONE),
        ],
        ("0.8", "0.4", "2.4", "0.6", "4.2"),
    ),
    "the administrator takes the prices away while it trains": (
        [*UNTIL_IT_TRAINS, Told(3600, Phase.SUCCEEDED, resumed_from=0, prices=None)],
        ("0.8", "50.4", "0", "3.6", "54.8"),
    ),
    "prices are in another currency from now on": (
        [*UNTIL_IT_TRAINS, Told(3600, Phase.SUCCEEDED, resumed_from=0, prices=replace(PRICES, currency="EUR"))],
        ("0.8", "50.4", "0", "3.6", "54.8"),
    ),
}


@pytest.mark.parametrize("case", HISTORIES)
def test_what_a_job_costs_when(case: str) -> None:
    story, expected = HISTORIES[case]
    cost = cost_of(play(*story))
    assert (cost.starting, cost.productive, cost.lost, cost.storage, cost.total) == expected
    assert cost.currency == "USD"


@pytest.mark.parametrize("case", HISTORIES)
def test_telling_the_same_again_and_again_changes_no_cost(case: str) -> None:
    story, _ = HISTORIES[case]
    twice = [told for told in story for _ in range(2)]
    assert cost_of(play(*twice)) == cost_of(play(*story))


def test_while_nothing_changes_nothing_is_written() -> None:
    status = play(*UNTIL_IT_TRAINS)
    for seconds in (500, 5000, 500_000):
        assert charged(status, accounted(status, status, moment(seconds), NUM_GPUS), PRICES, moment(seconds)) == status


def test_without_prices_no_money_is_told() -> None:
    assert ledger_of(play(*[replace(told, prices=None) for told in UNTIL_IT_TRAINS])).cost is None


def test_what_was_spent_by_now_is_what_will_be_added_up() -> None:
    ledger = ledger_of(play(*UNTIL_IT_TRAINS))
    # 0.8 while it started, 0.45 of storage until then; 0.017 for each second since.
    assert spent(ledger, NUM_GPUS, moment(450)) == Decimal("1.25")
    assert spent(ledger, NUM_GPUS, moment(3600)) == Decimal("54.8")


def test_waiting_for_nodes_costs_storage_alone() -> None:
    ledger = ledger_of(play(Told(360, Phase.PENDING)))
    assert spent(ledger, NUM_GPUS, moment(3960)) == Decimal("3.96")


def test_when_a_budget_will_be_spent_is_known_to_the_second() -> None:
    ledger = ledger_of(play(*[replace(told, prices=ON_GPUS_ALONE) for told in UNTIL_IT_TRAINS]))
    # 0.8 is spent by then; the other 16.0 last for 1,000 seconds.
    assert spent_at(ledger, NUM_GPUS, Decimal("16.8"), moment(450)) == moment(1450)
    assert spent(ledger, NUM_GPUS, moment(1449)) < Decimal("16.8") <= spent(ledger, NUM_GPUS, moment(1450))


def test_what_costs_nothing_never_spends_a_budget() -> None:
    ledger = ledger_of(play(Told(360, Phase.PENDING, prices=ON_GPUS_ALONE)))
    assert spent_at(ledger, NUM_GPUS, Decimal(1), moment(400)) is None


def test_an_attempt_is_priced_once_when_all_its_pods_run() -> None:
    starting = play(*UNTIL_IT_TRAINS[:1])
    assert (cost_of(starting).gpu_hour_price, cost_of(starting).priced_attempt) == (None, 0)
    dearer = replace(PRICES, gpu_hour=Decimal(9))
    running = play(*UNTIL_IT_TRAINS[:2], replace(UNTIL_IT_TRAINS[2], prices=dearer))
    assert (cost_of(running).gpu_hour_price, cost_of(running).priced_attempt) == ("3.6", 1)


def test_growth_is_counted_and_what_was_taken_away_is_not() -> None:
    story, _ = HISTORIES["the newest checkpoint is damaged, and half of the steps are done again"]
    before, after = cost_of(play(*story[:6])), cost_of(play(*story[:8]))
    assert growth_between(before, after)["lost"] == 8
    assert "productive" not in growth_between(before, after)


PRICING = parse_pricing(
    '{"currency": "USD", "gpuHour": {"default": "3", "byNodeLabel": ['
    '{"label": "kind", "value": "spot", "price": "1"}]}, "storageGiBMonth": {"default": "0.73"}}'
)
PRICED = replace(SETTINGS, pricing=PRICING)


def price_list(spec: dict[str, Any], *nodes: dict[str, str]) -> Prices:
    """What a job pays, on nodes with these labels."""
    prices = prices_of(make_job_plan(spec, settings=PRICED), nodes)
    assert prices is not None
    return prices


def test_a_gang_on_nodes_of_different_prices_pays_their_mean() -> None:
    spec = {"compute": {"nodes": 2, "gpusPerNode": 8}}
    assert price_list(spec, {"kind": "spot"}, {"kind": "on-demand"}).gpu_hour == 2


def test_the_labels_that_a_job_selects_its_nodes_by_need_not_be_read() -> None:
    assert price_list({"compute": {"nodeSelector": {"kind": "spot"}}}).gpu_hour == 1


def test_new_claims_are_paid_for_and_one_that_was_there_is_not() -> None:
    # 100 GiB and 1000 GiB at 0.73 a month of 730 hours: 0.1 and 1 an hour.
    storage = {"shared": {"size": "100Gi"}, "network": {"size": "1000Gi"}}
    assert price_list({"storage": storage}).storage_hour == Decimal("1.1")
    there = {"claimName": "models", "size": None, "storageClassName": None}
    assert price_list({"storage": {**storage, "shared": there}}).storage_hour == 1


def test_nodes_are_read_for_an_attempt_without_a_price_and_only_where_prices_differ() -> None:
    status = play(*UNTIL_IT_TRAINS[:1])
    running = play(*UNTIL_IT_TRAINS)

    def number(status: FineTuneJobStatus, pricing: str = "by label") -> int | None:
        settings = PRICED if pricing == "by label" else replace(SETTINGS, pricing=parse_pricing(pricing))
        plan = make_job_plan(settings=settings)
        job = plan.job.model_copy(update={"status": status})
        return attempt_to_price(replace(plan, job=job))

    assert number(status) == 1
    assert number(running) is None
    assert number(status, '{"currency": "USD", "gpuHour": {"default": 3}}') is None
