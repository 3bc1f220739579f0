"""Which attempts of each job have running pods, and whether two of one job ever had them at once."""

from collections import defaultdict
from dataclasses import dataclass

from tests.e2e.kubectl import Manifest

JOB, ATTEMPT = "finetune.dev/job", "finetune.dev/attempt"


@dataclass(frozen=True)
class JobName:
    """A FineTuneJob, by name."""

    namespace: str
    name: str


class Gangs:
    """Is told of every training pod, and remembers.

    A pod that is not there any more, or has ended, does not run; one that was told to go and still ends, does.
    """

    def __init__(self) -> None:
        self._running: dict[str, tuple[JobName, int]] = {}  # by the pod's uid
        self._attempts: defaultdict[JobName, set[int]] = defaultdict(set)
        self._overlaps: defaultdict[JobName, list[str]] = defaultdict(list)

    def begin(self) -> None:
        """Forget what runs: all of it is about to be told again."""
        self._running.clear()

    def see(self, event_type: str, pod: Manifest) -> None:
        """Note what has become of a pod."""
        metadata = pod["metadata"]
        job = JobName(metadata["namespace"], metadata["labels"][JOB])
        if event_type == "DELETED" or pod.get("status", {}).get("phase") != "Running":
            self._running.pop(metadata["uid"], None)
            return
        attempt = int(metadata["labels"][ATTEMPT])
        self._running[metadata["uid"]] = (job, attempt)
        self._attempts[job].add(attempt)
        others = sorted({other for name, other in self._running.values() if name == job} - {attempt})
        if others:
            self._overlaps[job].append(f"pod {metadata['name']} ran beside pods of attempt {others[0]}")

    def attempts(self, job: JobName) -> set[int]:
        """Return the attempts of a job that were ever seen to run."""
        return set(self._attempts[job])

    def overlaps(self, job: JobName) -> list[str]:
        """Return a sentence for each time that pods of two attempts of a job ran at once."""
        return list(self._overlaps[job])
