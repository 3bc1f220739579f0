"""Strikes the faults of a session side by side, a few at a time, as most of their time is waiting."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

from tests.e2e.faults.fault import UNDISTURBED, Fault
from tests.e2e.faults.outcome import Outcome
from tests.e2e.faults.run import running
from tests.e2e.faults.watch import Watch
from tests.e2e.kubectl import Kubectl

# Two cores compute one gang of two pods. The others wait meanwhile: for a delay, a timeout, the end of their pods.
SIDE_BY_SIDE = 5


class Matrix:
    """All faults that are to be struck, begun at once; each touches its own job alone.

    Args:
        kubectl: of a cluster with the operator.
        watch: of the whole cluster.
        faults: in the order in which they begin.
    """

    def __init__(self, kubectl: Kubectl, watch: Watch, faults: Iterable[Fault]) -> None:
        self._kubectl = kubectl
        self._watch = watch
        self._threads = ThreadPoolExecutor(SIDE_BY_SIDE, "fault")
        self._outcomes: dict[str, Future[Outcome]] = {}
        for fault in faults:
            self._begin(fault)

    def outcome(self, fault: Fault) -> Outcome:
        """Wait for the outcome of a fault."""
        return self._begin(fault).result()

    def undisturbed(self, backend: str) -> Outcome:
        """Return the outcome of the job to which nothing happens, which is run once for each back-end."""
        return self.outcome(UNDISTURBED[backend])

    def settle(self) -> None:
        """Wait until nothing is under way, so that the whole cluster can be disturbed; then all jobs are compared with
        those that were not."""
        for fault in UNDISTURBED.values():
            self._begin(fault)
        wait(self._outcomes.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _begin(self, fault: Fault) -> Future[Outcome]:
        if fault.name not in self._outcomes:
            self._outcomes[fault.name] = self._threads.submit(self._strike, fault)
        return self._outcomes[fault.name]

    def _strike(self, fault: Fault) -> Outcome:
        with running(self._kubectl, self._watch, fault) as run:
            fault.strike(run)
            return run.finish()
