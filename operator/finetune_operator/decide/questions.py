"""When to ask rank 0 how far it is."""

from datetime import datetime

from finetune_operator import status as tell
from finetune_operator.api.job import FineTuneJob
from finetune_operator.api.status import ConditionType, FineTuneJobStatus
from finetune_operator.decide.decision import Timing

FIRST_QUESTION_SECONDS = 2.0
"""How soon a gang that has come to run is asked how far it is, and again until it is heard."""
_ASK_AGAIN_SECONDS_AT_MOST = 300.0


def ask_again_after_seconds(job: FineTuneJob, status: FineTuneJobStatus, now: datetime, timing: Timing) -> float:
    """Return how long after one question to rank 0 of a running gang the next one follows.

    Soon until it is heard; then in the interval that was set, and more rarely the longer its last step is ago: long
    steps bring little news. When it will have stalled, it is asked in time. But never before it is its turn.
    """
    still_for_seconds, is_heard = _stillness(status, now)
    if not is_heard and still_for_seconds < timing.progress_interval_seconds:
        seconds = max(still_for_seconds, FIRST_QUESTION_SECONDS)
    else:
        seconds = max(timing.progress_interval_seconds, min(still_for_seconds / 4, _ASK_AGAIN_SECONDS_AT_MOST))
    stalls_after_seconds = job.spec.run_policy.stall_timeout_seconds - still_for_seconds
    if stalls_after_seconds > 0:
        seconds = min(seconds, stalls_after_seconds)
    return max(seconds, timing.turn_after_seconds)


def _stillness(status: FineTuneJobStatus, now: datetime) -> tuple[float, bool]:
    """Return for how many seconds a running gang has done no step, and whether rank 0 was heard in this attempt."""
    is_heard = bool(status.attempts) and status.attempts[-1].resumed_from_step is not None
    last_step_time = status.progress.last_step_time if status.progress is not None and is_heard else None
    if last_step_time is not None:
        still_since = datetime.fromisoformat(last_step_time)
    else:
        still_since = tell.answered_at(status, ConditionType.RUNNING) or now
    return (now - still_since).total_seconds(), is_heard
