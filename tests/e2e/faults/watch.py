"""What goes on in the cluster during the whole session: jobs as they are told, and gangs as they run."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.faults.gangs import Gangs, JobName
from tests.e2e.faults.history import Forgotten, History, history_of_embedded_cluster
from tests.e2e.faults.stream import Stream
from tests.e2e.kubectl import JobView, Kubectl, Manifest

JOBS = "/apis/finetune.dev/v1alpha1/finetunejobs"
TRAINING_PODS = "/api/v1/pods?labelSelector=finetune.dev%2Fstage%3Dtrain"


class Watch:
    """The newest of every FineTuneJob, without asking the API server each time, and all gangs that ever ran.

    Args:
        history: tells what came and went while the API server could not.
    """

    def __init__(self, history: History) -> None:
        self.gangs = Gangs()
        self._history = history
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

    def see_gap(self, after: str, until: str) -> None:
        """Note the pods that came and went between two versions of what there is, as nobody watched."""
        try:
            self.gangs.see_gone(self._history.came_and_went(int(after), int(until)))
        except (Forgotten, OSError) as error:
            self.gangs.see_nothing(f"nobody can tell which pods came and went from {after} to {until}: {error}")


@contextmanager
def watching(kubectl: Kubectl) -> Iterator[Watch]:
    """Watch all namespaces while this lasts."""
    watch = Watch(history_of_embedded_cluster())
    with (
        Stream(kubectl, JOBS, watch.see_jobs, watch.see_job),
        Stream(kubectl, TRAINING_PODS, watch.gangs.see_all, watch.gangs.see, watch.see_gap),
    ):
        yield watch
