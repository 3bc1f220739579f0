"""A watch of all that runs, and the faults under way."""

from collections.abc import Iterator

import pytest

from tests.e2e.faults.fault import UNDISTURBED, Fault
from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.outcome import Outcome
from tests.e2e.faults.watch import Watch, watching
from tests.e2e.kubectl import Kubectl


@pytest.fixture(scope="session")
def watch(operator: Kubectl) -> Iterator[Watch]:
    """What was seen since the first fault of the session."""
    with watching(operator) as watch:
        yield watch


@pytest.fixture(scope="session")
def matrix(request: pytest.FixtureRequest, operator: Kubectl, watch: Watch) -> Iterator[Matrix]:
    """All faults that selected tests ask for, begun as soon as the first of these tests does."""
    calls = [item.callspec for item in request.session.items if hasattr(item, "callspec")]
    asked_for = [call.params.get("outcome") for call in calls]
    faults = [fault for fault in asked_for if isinstance(fault, Fault)]
    backends = dict.fromkeys(fault.backend for fault in faults)
    with Matrix(operator, watch, [*(UNDISTURBED[backend] for backend in backends), *faults]) as matrix:
        yield matrix


@pytest.fixture
def outcome(request: pytest.FixtureRequest, matrix: Matrix) -> Outcome:
    """What became of the job at which the test's fault was struck."""
    outcome = matrix.outcome(request.param)
    outcome.keep()
    return outcome


@pytest.fixture(scope="session")
def alone(matrix: Matrix) -> Matrix:
    """Nothing else is under way: the whole cluster may be disturbed."""
    matrix.settle()
    return matrix
