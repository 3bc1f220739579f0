"""What is done to a job while it trains."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.kubectl import Kubectl

if TYPE_CHECKING:
    from tests.e2e.faults.run import Run

JOB, PYTORCH_JOB = "Job", "PyTorchJob"


def _nothing(_: "Run") -> None:
    """Disturb nothing."""


@dataclass(frozen=True)
class Fault:
    """A disturbance of one job, which touches no other.

    Attributes:
        name: unique; the job is called so, and its adapter's path has it.
        what: what happens, as the table in docs/LOG.md has it.
        strike: waits for its moment, calls `Run.mark`, and does it.
        backend: what runs the gang.
        spec: fields of the job's spec that differ from the undisturbed one's, as `tiny_job` takes them.
        surroundings: makes what the job needs in its namespace, and removes it.
    """

    name: str
    what: str
    strike: Callable[["Run"], None] = _nothing
    backend: str = JOB
    spec: Mapping[str, Any] = field(default_factory=dict, hash=False)
    surroundings: Callable[[Kubectl], AbstractContextManager[object]] = nullcontext


UNDISTURBED = {
    backend: Fault(f"undisturbed-{backend.lower()}", "nothing", backend=backend) for backend in (JOB, PYTORCH_JOB)
}


def disturbed_by(*faults: Fault) -> pytest.MarkDecorator:
    """Run a test on the outcome of each fault. The faults of all tests are struck side by side, a few at a time."""
    return pytest.mark.parametrize("outcome", faults, indirect=True, ids=[fault.name for fault in faults])
