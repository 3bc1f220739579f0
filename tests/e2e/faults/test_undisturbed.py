"""What all faults are measured by."""

import pytest

from tests.e2e.faults.expected import assert_as_undisturbed
from tests.e2e.faults.fault import JOB, PYTORCH_JOB, UNDISTURBED, disturbed_by
from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.outcome import Outcome

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


@disturbed_by(*UNDISTURBED.values())
def test_a_job_that_nobody_disturbs_takes_one_attempt_and_no_step_twice(outcome: Outcome, matrix: Matrix) -> None:
    assert_as_undisturbed(outcome, matrix)
    assert outcome.reasons == ["Succeeded"]
    assert outcome.steps_lost == 0


def test_both_back_ends_make_the_same_adapter(matrix: Matrix) -> None:
    assert matrix.undisturbed(JOB).adapter == matrix.undisturbed(PYTORCH_JOB).adapter
