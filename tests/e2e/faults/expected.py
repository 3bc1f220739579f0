"""What holds for every disturbed job, whatever was done to it."""

from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.outcome import Outcome
from tests.e2e.faults.tiny import TOTAL_STEPS

KEPT_CLAIM = {"persistentvolumeclaims": 1}


def assert_as_undisturbed(outcome: Outcome, matrix: Matrix) -> None:
    """The job has the adapter that it would have had, bit for bit; each step counts once."""
    assert outcome.job.phase == "Succeeded", outcome.job.body
    undisturbed = matrix.undisturbed(outcome.fault.backend)
    assert outcome.adapter.startswith("sha256:")
    assert outcome.adapter == undisturbed.adapter
    assert [step.number for step in outcome.steps] == list(range(1, TOTAL_STEPS + 1))
    assert_one_gang_told_of_and_nothing_left(outcome)


def assert_one_gang_told_of_and_nothing_left(outcome: Outcome) -> None:
    """At no time pods of two attempts ran, each end of one is told of, and of the deleted job only the claim is left
    that it was to keep.
    """
    for attempt in outcome.attempts:
        assert attempt["ended"]
        assert attempt["message"] or attempt["reason"] == "Succeeded"
        assert any(event.startswith(f"{attempt['reason']}: ") for event in outcome.events), (attempt, outcome.events)
    assert outcome.overlaps == []
    assert outcome.attempts_seen <= {attempt["number"] for attempt in outcome.attempts}
    assert outcome.attempts_seen, "the watch has seen no gang at all"
    assert outcome.left in (KEPT_CLAIM, {})
