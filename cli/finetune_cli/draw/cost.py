"""What `cost` shows: GPU-hours by what became of them, and money."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rich.text import Text

from finetune_cli import amounts
from finetune_cli.draw.columns import columns
from finetune_cli.jobs import Job

_SECONDS_AN_HOUR = 3600


@dataclass(frozen=True)
class JobCost:
    """What a job has used, in GPU-seconds, and in money where a price is known."""

    namespace: str
    name: str
    starting: int
    productive: int
    lost: int
    queued: int
    money: Decimal | None
    currency: str

    @property
    def used(self) -> int:
        """GPU-seconds for which GPUs were held."""
        return self.starting + self.productive + self.lost

    @property
    def productive_share(self) -> float | None:
        """Share of them that trained steps which count."""
        return self.productive / self.used if self.used else None


def cost_of(job: Job, gpu_hour_price: Decimal | None) -> JobCost:
    """Return what a job has used; processors cost nothing here, and what the operator tells goes before a price."""
    ledger = job.status.accounting
    starting, productive, lost, queued = (
        (0, 0, 0, 0)
        if ledger is None
        else (
            ledger.starting_gpu_seconds,
            ledger.productive_gpu_seconds,
            ledger.lost_gpu_seconds,
            ledger.queued_gpu_seconds,
        )
    )
    money, currency = None, ""
    if ledger is not None and ledger.cost is not None:
        money, currency = Decimal(ledger.cost.total), ledger.cost.currency
    elif gpu_hour_price is not None and job.on_gpus:
        money = gpu_hour_price * (starting + productive + lost) / _SECONDS_AN_HOUR
    return JobCost(job.namespace, job.name, starting, productive, lost, queued, money, currency)


def cost_documents(jobs: Sequence[Job], gpu_hour_price: Decimal | None) -> list[dict[str, Any]]:
    """Return the same as data."""
    return [
        {
            "namespace": cost.namespace,
            "name": cost.name,
            "gpuSeconds": {
                "used": cost.used,
                "starting": cost.starting,
                "productive": cost.productive,
                "lost": cost.lost,
                "queued": cost.queued,
            },
            "productiveShare": cost.productive_share,
            "cost": None if cost.money is None else f"{cost.money:.2f}",
            "currency": cost.currency or None,
        }
        for cost in (cost_of(job, gpu_hour_price) for job in jobs)
    ]


def draw_costs(jobs: Sequence[Job], gpu_hour_price: Decimal | None, *, everywhere: bool) -> Text:
    """Return a table of jobs, and their sum when there are several."""
    costs = [cost_of(job, gpu_hour_price) for job in jobs]
    rows = [_row(cost) for cost in costs]
    if len(costs) > 1:
        rows.append(_row(_sum(costs)))
    heads = ("name", "gpu-hours", "productive", "lost", "starting", "queued", "of use", "cost")
    if everywhere:
        namespaces = [cost.namespace for cost in costs] + [""] * (len(rows) - len(costs))
        return columns(("namespace", *heads), [(ns, *row) for ns, row in zip(namespaces, rows, strict=True)])
    return columns(heads, rows)


def _row(cost: JobCost) -> tuple[str | Text, ...]:
    kinds = (cost.used, cost.productive, cost.lost, cost.starting, cost.queued)
    share = "" if cost.productive_share is None else f"{cost.productive_share:.0%}"
    return cost.name, *(amounts.hours(kind) for kind in kinds), share, _money(cost)


def _money(cost: JobCost) -> str:
    return "" if cost.money is None else f"{cost.money:,.2f} {cost.currency}".strip()


def _sum(costs: Sequence[JobCost]) -> JobCost:
    """Return the sum; money of several currencies is not added up."""
    currencies = {cost.currency for cost in costs if cost.money is not None}
    total = sum((cost.money for cost in costs if cost.money is not None), Decimal(0)) if len(currencies) == 1 else None
    return JobCost(
        namespace="",
        name="(all)",
        starting=sum(cost.starting for cost in costs),
        productive=sum(cost.productive for cost in costs),
        lost=sum(cost.lost for cost in costs),
        queued=sum(cost.queued for cost in costs),
        money=total,
        currency=currencies.pop() if len(currencies) == 1 else "",
    )
