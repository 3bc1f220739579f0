"""Waits until a job is as somebody wants it."""

import time
from collections.abc import Callable

from finetune_cli.cluster import Cluster
from finetune_cli.errors import CommandError, ExitCode
from finetune_cli.jobs import Job, read_job
from finetune_cli.kinds import FINE_TUNE_JOB

_ASK_SECONDS = 1.0


def wait_for(cluster: Cluster, name: str, until: Callable[[Job], bool], timeout_seconds: float | None) -> Job:
    """Return a job as soon as it is as wanted.

    Raises:
        CommandError: it ended otherwise, or TIMED_OUT.
    """
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while True:
        job = read_job(cluster.get(FINE_TUNE_JOB, name))
        if until(job):
            return job
        if job.has_ended:
            raise CommandError(f"{name} has ended first: {job.phase}. {job.explanation}")
        if deadline is not None and time.monotonic() >= deadline:
            raise CommandError(f"{name} is still {job.phase}: {job.explanation}", ExitCode.TIMED_OUT)
        time.sleep(_ASK_SECONDS)
