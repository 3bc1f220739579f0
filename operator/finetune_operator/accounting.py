"""What became of the GPUs' time: a ledger of GPU-seconds, carried on from one status to the next.

Every second between the start of the training stage and its end belongs to one kind, except while the job is suspended
and its GPUs are free. So the kinds always add up to the wall time times the GPUs:

    queued      no gang runs: no node is free, the image is pulled, a queue has not admitted it
    starting    all pods run and no step was begun: the processes meet, the model is read
    productive  steps that count: up to the newest checkpoint, and to the end of a job that succeeded
    lost        steps after the newest checkpoint of an attempt that ended early, steps that had to be done again
                because that checkpoint was damaged, and the time until the next gang is made

Pure. A status keeps the sums, and since when what goes on has gone on: what goes on is added when it is over, steps at
each checkpoint. So nothing is written while nothing changes, and a restart of the operator loses nothing.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from finetune_operator.api.status import Accounting, Activity, FineTuneJobStatus, Phase

_KIND_OF_ACTIVITY = {Activity.QUEUED: "queued", Activity.STARTING: "starting", Activity.RECOVERING: "lost"}


def accounted(before: FineTuneJobStatus, after: FineTuneJobStatus, now: datetime, num_gpus: int) -> FineTuneJobStatus:
    """Return the status that is about to be told with its ledger brought up to date.

    Args:
        before: what was told last, with its ledger.
        after: what is to be told now.
        now: the time.
        num_gpus: GPUs of the whole gang; its processes where it trains on processors.
    """
    ledger, activity = before.accounting, _activity(before, after)
    if activity is None:
        return after
    if ledger is None:
        ledger = Accounting(activity=activity, since=_text(now))
    ledger = _with_steps_secured(ledger, before, after, now, num_gpus)
    ledger = _without_steps_done_again(ledger, before, after)
    if activity is not ledger.activity:
        ledger = _turned_to(activity, ledger, after.has_trained, now, num_gpus)
    return after.model_copy(update={"accounting": ledger})


def gpu_seconds(ledger: Accounting | None) -> Mapping[str, int]:
    """Return the sums by kind."""
    if ledger is None:
        return dict.fromkeys(("queued", "starting", "productive", "lost"), 0)
    return {
        "queued": ledger.queued_gpu_seconds,
        "starting": ledger.starting_gpu_seconds,
        "productive": ledger.productive_gpu_seconds,
        "lost": ledger.lost_gpu_seconds,
    }


def growth_between(before: Accounting | None, after: Accounting | None) -> Mapping[str, int]:
    """Return by how many GPU-seconds each kind has grown; a kind from which some were taken away has not."""
    old, new = gpu_seconds(before), gpu_seconds(after)
    return {kind: new[kind] - old[kind] for kind in new if new[kind] > old[kind]}


class Wait(NamedTuple):
    """A time in which an attempt did no step."""

    activity: Activity
    seconds: float


def wait_between(before: Accounting | None, after: Accounting | None) -> Wait | None:
    """Return which wait of an attempt ended from one ledger to the next; None when none did."""
    if before is None or after is None or before.activity is after.activity:
        return None
    if before.activity not in (Activity.QUEUED, Activity.STARTING):
        return None
    begun, over = datetime.fromisoformat(before.since), datetime.fromisoformat(after.since)
    return Wait(before.activity, (over - begun).total_seconds())


def _activity(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Activity | None:
    """Return what becomes of the GPUs' time from now on, or None before the training stage has begun."""
    if not after.attempts:
        return None
    if after.has_trained:
        return Activity.NONE  # the gang is gone; evaluating is another stage
    match after.phase:
        case Phase.SUCCEEDED | Phase.FAILED | Phase.SUSPENDED:
            return Activity.NONE
        case Phase.SUSPENDING:
            # Its pods are still there, writing a checkpoint.
            return before.accounting.activity if before.accounting is not None else Activity.NONE
        case Phase.RESTARTING:
            return Activity.RECOVERING
        case Phase.RUNNING:
            begun = after.attempts[-1].resumed_from_step is not None
            return Activity.TRAINING if begun else Activity.STARTING
        case _:
            return Activity.QUEUED


def _with_steps_secured(
    ledger: Accounting, before: FineTuneJobStatus, after: FineTuneJobStatus, now: datetime, num_gpus: int
) -> Accounting:
    """Add the steps up to a new checkpoint, which no failure takes away."""
    new = after.checkpoint if after.checkpoint != before.checkpoint else None
    if ledger.activity is not Activity.TRAINING or new is None or new.time is None:
        return ledger
    # A node's clock may be ahead of ours.
    until = min(datetime.fromisoformat(new.time), now)
    return _added("productive", ledger, until, num_gpus) if until > datetime.fromisoformat(ledger.since) else ledger


def _without_steps_done_again(ledger: Accounting, before: FineTuneJobStatus, after: FineTuneJobStatus) -> Accounting:
    """Count as lost what was secured by a checkpoint that could not be gone on from, at the mean price of a step."""
    attempt, secured = after.attempts[-1], before.checkpoint.step if before.checkpoint is not None else 0
    resumed_from = attempt.resumed_from_step
    known = any((told.number, told.resumed_from_step) == (attempt.number, resumed_from) for told in before.attempts)
    if known or resumed_from is None or resumed_from >= secured:
        return ledger
    again = ledger.productive_gpu_seconds * (secured - resumed_from) // secured
    return ledger.model_copy(
        update={
            "productive_gpu_seconds": ledger.productive_gpu_seconds - again,
            "lost_gpu_seconds": ledger.lost_gpu_seconds + again,
        }
    )


def _turned_to(activity: Activity, ledger: Accounting, trained: bool, now: datetime, num_gpus: int) -> Accounting:
    """Add what is over, and begin with what comes after it."""
    if ledger.activity is Activity.TRAINING:
        ledger = _added("productive" if trained else "lost", ledger, now, num_gpus)
    elif ledger.activity is not Activity.NONE:
        ledger = _added(_KIND_OF_ACTIVITY[ledger.activity], ledger, now, num_gpus)
    return ledger.model_copy(update={"activity": activity, "since": _text(now)})


def _added(kind: str, ledger: Accounting, until: datetime, num_gpus: int) -> Accounting:
    # Both are whole seconds, so that no second is lost between two entries.
    seconds = int((_whole_second(until) - datetime.fromisoformat(ledger.since)).total_seconds())
    field = f"{kind}_gpu_seconds"
    grown = gpu_seconds(ledger)[kind] + max(seconds, 0) * num_gpus
    return ledger.model_copy(update={field: grown, "since": _text(until)})


def _whole_second(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
