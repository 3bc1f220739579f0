"""Why a Job and its pods failed, as far as it is known yet."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_operator.causes import Trouble
from finetune_operator.workloads import JobSeen, JobState, first_failure

# A pod that lost its peers often says so before the peer that died has said why.
_ROOT_CAUSE_GRACE = timedelta(seconds=15)


def has_failure(jobs: Sequence[JobSeen]) -> bool:
    """Whether a Job, or a pod of one, has failed."""
    return any(job.state is JobState.FAILED or first_failure((job,)) is not None for job in jobs)


def cause_of_failure(jobs: Sequence[JobSeen]) -> Trouble | None:
    """Return why Jobs failed: what the pod that failed first says, or else the Job itself once its pods are through."""
    pod = first_failure(jobs)
    if pod is not None:
        return pod.failure
    return next((job.own_trouble for job in jobs if job.state is JobState.FAILED and not job.pods_lag_behind), None)


def root_cause_expected_by(jobs: Sequence[JobSeen], now: datetime) -> datetime | None:
    """Return until when to wait for the pod that made the others fail to say why; None when that is known or over."""
    pod = first_failure(jobs)
    all_ended = all(job.state is not JobState.ACTIVE and not job.pods_lag_behind for job in jobs)
    if pod is None or not pod.failed_by_another or all_ended:
        return None
    expected_by = (datetime.fromisoformat(pod.ended_at) if pod.ended_at else now) + _ROOT_CAUSE_GRACE
    return expected_by if now < expected_by else None
