"""What the table of faults in docs/LOG.md says is what was seen."""

import json

from tests.e2e.faults.fault import Fault
from tests.e2e.faults.outcome import Outcome, Step
from tests.e2e.faults.table import make_table
from tests.e2e.kubectl import JobView


def outcome(steps: list[Step], *attempts: dict[str, object], struck_at: float | None = 100.0) -> Outcome:
    return Outcome(
        fault=Fault("killed", "a process killed"),
        job=JobView({"status": {"phase": "Succeeded", "attempts": list(attempts)}}),
        struck_at=struck_at,
        steps=steps,
        attempts_seen=frozenset({1}),
        overlaps=(),
        left={},
        events=(),
    )


def test_a_job_has_recovered_with_the_first_step_of_its_last_attempt() -> None:
    steps = [Step(1, 90.0), Step(2, 99.0), Step(3, 130.0), Step(4, 131.0)]
    recovered = outcome(steps, {"number": 1, "stepsLost": 3}, {"number": 2, "resumedFromStep": 2})
    assert recovered.seconds_to_recover == 30.0
    assert recovered.steps_lost == 3


def test_a_job_that_goes_on_in_its_attempt_has_recovered_after_its_longest_pause() -> None:
    steps = [Step(1, 99.0), Step(2, 101.0), Step(3, 161.0), Step(4, 162.0)]
    assert outcome(steps, {"number": 1}).seconds_to_recover == 60.0


def test_a_job_that_nobody_disturbed_has_not_recovered() -> None:
    assert outcome([Step(1, 99.0)], {"number": 1}, struck_at=None).seconds_to_recover is None


def test_the_table_has_the_newest_outcome_of_each_fault_and_back_end() -> None:
    line = {"fault": "a process killed", "backend": "Job", "phase": "Succeeded", "reasons": ["Killed", "Succeeded"]}
    old = line | {"seconds_to_recover": 99.0, "steps_lost": 9}
    new = line | {"seconds_to_recover": 31.4, "steps_lost": 3}
    failed = line | {"backend": "PyTorchJob", "phase": "Failed", "seconds_to_recover": None, "steps_lost": 0}
    table = make_table(json.dumps(found) for found in (old, failed, new)).splitlines()
    assert table[2:] == [
        "| a process killed | PyTorchJob | Killed, Succeeded |  | 0 | Failed |",
        "| a process killed | Job | Killed, Succeeded | 31 s | 3 | Succeeded |",
    ]
