"""What goes on in the cluster during the whole session: jobs as they are told, and gangs as they run."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.faults.gangs import Gangs, JobName
from tests.e2e.faults.stream import Stream
from tests.e2e.kubectl import JobView, Kubectl, Manifest

JOBS = "/apis/finetune.dev/v1alpha1/finetunejobs"
TRAINING_PODS = "/api/v1/pods?labelSelector=finetune.dev%2Fstage%3Dtrain"


class Watch:
    """The newest of every FineTuneJob, without asking the API server each time, and all gangs that ever ran."""

    def __init__(self) -> None:
        self.gangs = Gangs()
        self._jobs: dict[JobName, JobView] = {}

    def job(self, name: JobName) -> JobView:
        """Return a job as it was seen last; one that was not seen yet is empty."""
        return self._jobs.get(name, JobView({}))

    def see_jobs(self, jobs: list[Manifest]) -> None:
        """Note all jobs that there are."""
        for job in jobs:
            self.see_job("ADDED", job)

    def see_job(self, event_type: str, job: Manifest) -> None:
        """Note a job as it is now."""
        metadata = job["metadata"]
        self._jobs[JobName(metadata["namespace"], metadata["name"])] = JobView(job)


@contextmanager
def watching(kubectl: Kubectl) -> Iterator[Watch]:
    """Watch all namespaces while this lasts."""
    watch = Watch()
    with (
        Stream(kubectl, JOBS, watch.see_jobs, watch.see_job),
        Stream(kubectl, TRAINING_PODS, watch.gangs.see_all, watch.gangs.see),
    ):
        yield watch
