"""A job that is about to be disturbed: where it stands, what of it runs where, what it has written."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from finetune_trainer.checkpoint.layout import find_checkpoints
from finetune_trainer.contract.paths import JobPaths
from tests.e2e.faults.fault import Fault
from tests.e2e.faults.gangs import JobName
from tests.e2e.faults.outcome import Outcome, read_steps
from tests.e2e.faults.tiny import STEPS_A_CHECKPOINT, manifest_of
from tests.e2e.faults.watch import Watch
from tests.e2e.kubectl import JobView, Kubectl, Manifest, fresh_namespace

# Generous: a cold machine with other work has to be able to keep to it.
WAIT_SECONDS = 600.0
LOOK_SECONDS = 0.05
COUNTED = ("jobs", "pytorchjobs", "pods", "services", "configmaps", "persistentvolumeclaims", "finetunejobs")


class Run:
    """A job in a namespace of its own.

    Args:
        kubectl: in the namespace.
        watch: of the whole cluster.
        fault: what is going to happen to the job.
    """

    def __init__(self, kubectl: Kubectl, watch: Watch, fault: Fault) -> None:
        self.kubectl = kubectl
        self.fault = fault
        self.name = fault.name
        self.struck_at: float | None = None
        self._watch = watch
        self._job_name = JobName(kubectl.namespace, fault.name)
        self._paths: JobPaths | None = None
        self._before = self._count()

    @property
    def job(self) -> JobView:
        """The job as it was told last."""
        return self._watch.job(self._job_name)

    @property
    def paths(self) -> JobPaths:
        """Its files, as the host sees them, on which the volumes of the embedded cluster are directories."""
        if self._paths is None:
            claim = self.job.body["spec"]["storage"]["shared"].get("claimName") or f"{self.name}-shared"
            volume = self.kubectl.get("persistentvolumeclaim", claim)["spec"]["volumeName"]
            shared = Path(self.kubectl.get("persistentvolume", volume)["spec"]["hostPath"]["path"])
            uid = self.job.body["metadata"]["uid"]
            self._paths = JobPaths(shared, None, self.kubectl.namespace, self.name, uid)
        return self._paths

    def apply(self) -> None:
        """Apply the job, as a person does."""
        self.kubectl.apply(manifest_of(self.fault))

    def mark(self) -> None:
        """Note that the job is disturbed now; the last time counts."""
        self.struck_at = time.time()

    def wait(self, what: str, condition: Callable[[], bool], timeout_seconds: float = WAIT_SECONDS) -> None:
        """Wait until something is so; fail with all that a person would look at."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_seconds:.0f} s: {what}\n{self.kubectl.story(self.name)}")
            time.sleep(LOOK_SECONDS)

    def wait_for_phase(self, *phases: str) -> None:
        """Wait until the job is in one of these phases."""
        self.wait(f"{self.name} is {' or '.join(phases)}", lambda: self.job.phase in phases)

    def wait_for_checkpoint(self, step: int) -> None:
        """Wait until a checkpoint of a step, or of a later one, is complete; the gang then trains."""
        self.wait_for_phase("Starting", "Running")
        self.wait(f"checkpoint of step {step}", lambda: self._has_ended() or self.newest_checkpoint() >= step)
        assert not self._has_ended(), f"{self.name} ended before it was disturbed\n{self.kubectl.story(self.name)}"

    def wait_for_end_of_attempt(self, number: int) -> None:
        """Wait until the operator has told that an attempt has ended."""
        self.wait(
            f"attempt {number} of {self.name} has ended",
            lambda: any(
                attempt["number"] == number and "ended" in attempt for attempt in self.job.status.get("attempts", [])
            ),
        )

    def newest_checkpoint(self) -> int:
        """Return the step of the newest complete checkpoint, or 0."""
        found = find_checkpoints(self.paths.checkpoints)
        return int(found[0].name.removeprefix("step-")) if found else 0

    def last_step(self) -> int:
        """Return the last step that was done, or 0."""
        metrics = self.paths.logs / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        try:
            return int(json.loads(lines[-1])["step"]) if lines else 0
        except ValueError:  # half of a line: it is just being written
            return int(json.loads(lines[-2])["step"]) if len(lines) > 1 else 0

    def training_pods(self) -> list[Manifest]:
        """Return the training pods that are there, that of rank 0 first."""
        pods = self.kubectl.items("pods", "finetune.dev/stage=train")
        return sorted(pods, key=lambda pod: pod["metadata"]["name"])

    def change(self, spec: Manifest) -> None:
        """Change fields of the job's spec."""
        patch = json.dumps({"spec": spec})
        self.kubectl.run("patch", "finetunejob", self.name, "--type=merge", "--patch", patch)

    def finish(self) -> Outcome:
        """Wait until the job has ended, delete it, and return what became of it."""
        self.wait(f"{self.name} ends", self._has_ended)
        # What pods were there is told by then: the end of a job is told after the end of its pods.
        job, steps = self.job, read_steps(self.paths.logs / "metrics.jsonl")
        events = self._events_with(job.status["reason"])
        self.kubectl.run("delete", "finetunejob", self.name, timeout_seconds=120)
        return Outcome(
            fault=self.fault,
            job=job,
            struck_at=self.struck_at,
            steps=steps,
            attempts_seen=frozenset(self._watch.gangs.attempts(self._job_name)),
            overlaps=self._watch.gangs.overlaps(self._job_name),
            left=self._left(),
            events=events,
        )

    def _has_ended(self) -> bool:
        return self.job.phase in ("Succeeded", "Failed")

    def _events_with(self, reason: str, timeout_seconds: float = 10) -> list[str]:
        """Return the job's Events when that of its end is among them, or the time is over: it follows the status."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            events = self.kubectl.events(self.name)
            if any(event.startswith(f"{reason}: ") for event in events) or time.monotonic() > deadline:
                return events
            time.sleep(LOOK_SECONDS)

    def _left(self, timeout_seconds: float = 60) -> dict[str, int]:
        """Return what is there more than before, when nothing goes any more or the time is over."""
        claims = {"persistentvolumeclaims": 1} if "claimName" not in self._shared() else {}
        deadline = time.monotonic() + timeout_seconds
        while True:
            left = dict(self._count() - self._before)
            if left == claims or time.monotonic() > deadline:
                return left
            time.sleep(0.5)

    def _shared(self) -> Manifest:
        shared: Manifest = manifest_of(self.fault)["spec"]["storage"]["shared"]
        return shared

    def _count(self) -> Counter[str]:
        listed = json.loads(self.kubectl.run("get", ",".join(COUNTED), "--output", "json"))["items"]
        return Counter(f"{found['kind'].lower()}s" for found in listed if not _is_everywhere(found))


@contextmanager
def running(kubectl: Kubectl, watch: Watch, fault: Fault) -> Iterator[Run]:
    """Apply the job of a fault in a namespace of its own."""
    with fresh_namespace(kubectl) as namespace, fault.surroundings(namespace):
        run = Run(namespace, watch, fault)
        run.apply()
        run.wait("the job is seen", lambda: bool(run.job.body), timeout_seconds=60)
        yield run


def strike_together(
    kubectl: Kubectl, watch: Watch, faults: Iterable[Fault], strike: Callable[[Sequence[Run]], None]
) -> list[Outcome]:
    """Disturb several jobs by one and the same event, when each of them has a checkpoint and trains on."""
    with ExitStack() as stack:
        runs = [stack.enter_context(running(kubectl, watch, fault)) for fault in faults]
        for run in runs:
            run.wait_for_checkpoint(STEPS_A_CHECKPOINT)
        for run in runs:
            run.mark()
        strike(runs)
        return [run.finish() for run in runs]


def _is_everywhere(found: Manifest) -> bool:
    """Return whether Kubernetes puts such an object into every namespace."""
    return bool(found["kind"] == "ConfigMap" and found["metadata"]["name"] == "kube-root-ca.crt")
