"""Which attempts of each job have running pods, and whether two of one job ever had them at once.

Three looks, for each may be blind where another sees. What the watch tells comes in the order in which it happened, so
two pods that are Running by what was told last do run at once; but nothing is told while the API server is away. The
kubelet notes when each container started and ended, whoever watches: that is compared for every pod that is ever seen.
And a pod that was made and removed before the watch was back is known to etcd, if by its name alone.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tests.e2e.faults.history import PodName
from tests.e2e.kubectl import Manifest

# What a training pod is called in either back-end: <job>-a<attempt>-<role>-...
TRAINING_POD = re.compile(r"(?P<job>.+)-a(?P<attempt>\d+)-(?:node|leader|master|worker)-.+")
JOB, ATTEMPT = "finetune.dev/job", "finetune.dev/attempt"


@dataclass(frozen=True)
class JobName:
    """A FineTuneJob, by name."""

    namespace: str
    name: str


@dataclass(eq=False)
class _Run:
    """A pod, and when its containers ran: whole seconds, as the kubelet notes them."""

    job: JobName
    attempt: int
    pod: str
    is_running: bool = False  # by what was told last
    has_run: bool = False
    started: datetime | None = None
    ended: datetime | None = None

    def see(self, event_type: str, status: Manifest) -> None:
        """Note what has become of the pod."""
        started, ended = _times(status)
        self.started, self.ended = started or self.started, ended or self.ended
        self.is_running = event_type != "DELETED" and status.get("phase") == "Running"
        self.has_run = self.has_run or self.is_running or self.started is not None

    def overlaps(self, other: "_Run") -> bool:
        """Return whether both ran at once for certain; what starts in the second in which the other ends, may not."""
        if self.is_running and other.is_running:
            return True
        return self._starts_within(other) and other._starts_within(self)

    def _starts_within(self, other: "_Run") -> bool:
        """Return whether it started before the other is known to have ended."""
        if self.started is None or other.started is None:
            return False
        # Of a pod that was removed without a word it is known that it started, and no more.
        return other.is_running or self.started < (other.ended or other.started)


class Gangs:
    """Is told of every training pod, and remembers.

    A pod that is not there any more, or has ended, does not run; one that was told to go and still ends, does.
    """

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}  # by the pod's uid
        self._vanished: list[_Run] = []  # ran when nobody could watch any more, and were not there when somebody could
        self._overlaps: defaultdict[JobName, dict[tuple[int, int], str]] = defaultdict(dict)
        self._blind: list[str] = []

    def see(self, event_type: str, pod: Manifest) -> None:
        """Note what has become of a pod."""
        self._compare(self._note(event_type, pod))

    def see_all(self, pods: Sequence[Manifest]) -> None:
        """Note all pods that there are, after a time in which nobody watched."""
        ran_before = {uid for uid, run in self._runs.items() if run.has_run}
        vanished = [run for run in self._runs.values() if run.is_running]
        for run in vanished:
            run.is_running = False
        listed = {pod["metadata"]["uid"]: self._note("ADDED", pod) for pod in pods}
        self._vanished = [run for run in vanished if run not in listed.values()]
        for uid, run in listed.items():
            self._compare(run)
            for other in self._vanished:
                if run.has_run and uid not in ran_before:
                    self._tell(run, other, "started while nobody could watch, as those of attempt {} went")

    def see_gone(self, pods: Sequence[PodName]) -> None:
        """Note pods that came and went before `see_all` was told what there is; whether they ran, nobody can tell."""
        gone = [_by_name(pod) for pod in pods if TRAINING_POD.fullmatch(pod.name)]
        beside = [*(run for run in self._runs.values() if run.is_running), *self._vanished, *gone]
        for run in gone:
            for other in beside:
                self._tell(run, other, "came and went while nobody could watch, as those of attempt {} ran or went")

    def see_nothing(self, why: str) -> None:
        """Note that it is not known what came and went: then no job is known to have had one gang at a time."""
        self._blind.append(why)

    def attempts(self, job: JobName) -> set[int]:
        """Return the attempts of a job that were ever seen to run, or to have run."""
        return {run.attempt for run in self._runs.values() if run.job == job and run.has_run}

    def overlaps(self, job: JobName) -> list[str]:
        """Return a sentence for each two attempts of a job whose pods ran at once, or may have while nobody watched."""
        return [*self._overlaps[job].values(), *self._blind]

    def _note(self, event_type: str, pod: Manifest) -> _Run:
        metadata = pod["metadata"]
        job, attempt = JobName(metadata["namespace"], metadata["labels"][JOB]), int(metadata["labels"][ATTEMPT])
        run = self._runs.setdefault(metadata["uid"], _Run(job, attempt, metadata["name"]))
        run.see(event_type, pod.get("status", {}))
        return run

    def _compare(self, run: _Run) -> None:
        for other in self._runs.values():
            if run.overlaps(other):
                older, newer = sorted((run, other), key=lambda one: one.attempt)
                self._tell(newer, older, "ran beside pods of attempt {}")

    def _tell(self, run: _Run, other: _Run, words: str) -> None:
        if run.job == other.job and run.attempt != other.attempt:
            attempts = (min(run.attempt, other.attempt), max(run.attempt, other.attempt))
            self._overlaps[run.job].setdefault(attempts, f"pod {run.pod} {words.format(other.attempt)}")


def _by_name(pod: PodName) -> _Run:
    found = TRAINING_POD.fullmatch(pod.name)
    assert found is not None
    return _Run(JobName(pod.namespace, found["job"]), int(found["attempt"]), pod.name)


def _times(status: Manifest) -> tuple[datetime | None, datetime | None]:
    """Return when the first container of a pod started, and when its last one ended where all have."""
    states = [container.get("state", {}) for container in status.get("containerStatuses", ())]
    started = [_moment((state.get("running") or state.get("terminated") or {}).get("startedAt")) for state in states]
    ended = [_moment((state.get("terminated") or {}).get("finishedAt")) for state in states]
    all_ended = [moment for moment in ended if moment is not None]
    return (
        min((moment for moment in started if moment is not None), default=None),
        max(all_ended, default=None) if len(all_ended) == len(states) else None,
    )


def _moment(time: str | None) -> datetime | None:
    """Return a moment that the kubelet noted; it writes 1970 for a container that could not be started."""
    return None if not time or time.startswith("1970") else datetime.fromisoformat(time)
