"""What a person reads in `kubectl get` and `kubectl describe`."""

from datetime import UTC, datetime
from typing import Any

import pytest

from finetune_operator import status as tell
from finetune_operator.api.status import ConditionType, FineTuneJobStatus
from finetune_operator.causes import Trouble
from finetune_operator.events import EventType, JobEvent, events_between
from finetune_operator.progress import duration_text, with_report
from finetune_operator.status import Moment
from finetune_trainer.contract.progress import ProgressReport
from finetune_trainer.contract.termination import PreparedReport, TrainedReport
from tests.unit.operator.kubernetes_objects import PREPARED, TRAINED, checkpoint, report

NEW = FineTuneJobStatus()
EARLIER = Moment(datetime(2026, 11, 23, 5, 0, tzinfo=UTC), generation=1)
LATER = Moment(datetime(2026, 11, 23, 6, 0, tzinfo=UTC), generation=2)
NO_ROOM = Trouble("Unschedulable", "0/2 nodes are available")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (45.4, "45s"),
        (59.6, "1m00s"),
        (750, "12m30s"),
        (3900, "1h05m"),
        (86399, "23h59m"),
        (273600, "3d04h"),
        (-3, "0s"),
    ],
)
def test_the_time_left_is_written_as_a_person_says_it(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_condition_keeps_its_transition_time_while_its_answer_stays() -> None:
    first = tell.preparing(NEW, EARLIER, None)
    second = tell.preparing(first, LATER, NO_ROOM)
    (condition,) = second.conditions
    assert (condition.reason, condition.message) == ("Unschedulable", "0/2 nodes are available")
    assert condition.last_transition_time == "2026-11-23T05:00:00Z"
    assert condition.observed_generation == 2


def test_a_condition_gets_a_new_transition_time_when_its_answer_changes() -> None:
    first = tell.preparing(NEW, EARLIER, None)
    second = tell.prepared(first, LATER, PreparedReport.model_validate(PREPARED))
    assert second.conditions[0].last_transition_time == "2026-11-23T06:00:00Z"


def test_the_start_time_is_when_the_job_was_accepted_and_stays() -> None:
    first = tell.accepted(NEW, EARLIER, "1 x 1 GPU.")
    assert tell.accepted(first, LATER, "another message") == first
    assert first.start_time == "2026-11-23T05:00:00Z"


def test_the_summary_of_prepare_has_rows_tokens_steps_and_what_was_dropped() -> None:
    told = tell.prepared(NEW, EARLIER, PreparedReport.model_validate(PREPARED))
    assert told.conditions[0].message == (
        "someone/tiny@0123456789abcdef0123456789abcdef01234567 (llama, 135M parameters, 4.88M trained): 100 sequences, "
        "51.2k tokens, 2 of 60 rows dropped; 30 steps of 4 sequences on 2 processes, fp32, replicate."
    )


def test_rows_that_are_held_out_are_not_told_as_dropped() -> None:
    report = PreparedReport.model_validate(PREPARED)
    [dataset] = report.datasets
    held_out = dataset.model_copy(update={"rows_kept": dataset.rows_read - 7, "rows_held_out": 7})
    told = tell.prepared(NEW, EARLIER, report.model_copy(update={"datasets": (held_out,)}))
    assert "tokens, all 60 rows used, 7 held out; 30 steps" in told.conditions[0].message


PLANNED = tell.prepared(NEW, EARLIER, PreparedReport.model_validate(PREPARED))
REPORT = ProgressReport(
    step=412,
    total_steps=1000,
    epoch=2,
    loss=1.23456,
    learning_rate=0.0002,
    tokens_per_second=98765.4,
    last_step_time="2026-11-23T05:59:58.7Z",
    checkpoint=checkpoint(400, "2026-11-23T05:58:00+00:00"),
)
RUNNING = tell.attempt_begun(PLANNED, EARLIER, 1)


def test_progress_is_formatted_for_kubectl_get() -> None:
    told = with_report(RUNNING, REPORT)
    assert told.progress is not None
    # 588 steps of 4 sequences of 512.34 tokens, at 98765.4 tokens a second, are 12.2 seconds.
    assert told.progress.model_dump() == {
        "step": 412,
        "total_steps": 1000,
        "steps": "412/1000",
        "epoch": 2,
        "loss": 1.23456,
        "loss_text": "1.235",
        "learning_rate": 0.0002,
        "tokens_per_second": 98765.4,
        "last_step_time": "2026-11-23T05:59:58Z",
        "eta": "12s",
    }
    assert told.checkpoint is not None
    assert told.checkpoint.model_dump() == {
        "step": 400,
        "time": "2026-11-23T05:58:00Z",
        "path": "jobs/team/demo/uid/checkpoints/00000400",
        "bytes": 1000,
        "digest": f"sha256:{400:064x}",
    }


def test_before_the_first_step_there_is_neither_a_loss_nor_a_time_left() -> None:
    told = with_report(RUNNING, report())
    assert told.progress is not None
    assert (told.progress.steps, told.progress.loss, told.progress.loss_text, told.progress.eta) == (
        "0/30",
        None,
        None,
        None,
    )
    assert told.checkpoint is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_left_out_because_json_cannot_say_it(value: float) -> None:
    told = with_report(RUNNING, report(step=3, loss=value))
    assert told.progress is not None
    assert (told.progress.loss, told.progress.loss_text) == (None, None)


UNTOLD: dict[str, dict[str, Any]] = {
    "a step before the first": {"step": -1},
    "a checkpoint before the first step": {"checkpoint": checkpoint(3).model_copy(update={"step": -3})},
    "a path that is a novel": {"checkpoint": checkpoint(3).model_copy(update={"path": "x" * 5000})},
}


@pytest.mark.parametrize("case", UNTOLD)
def test_a_report_that_a_status_cannot_hold_is_passed_over(case: str) -> None:
    assert with_report(RUNNING, report(**UNTOLD[case])) == RUNNING


@pytest.mark.parametrize("text", ["yesterday", "2026-11-23T05:00:00"], ids=["no time", "a time of no zone"])
def test_a_time_that_kubernetes_would_not_take_is_left_out(text: str) -> None:
    told = with_report(RUNNING, report(step=3, last_step_time=text))
    assert told.progress is not None
    assert told.progress.last_step_time is None


def test_success_ends_with_the_last_step_and_no_time_left() -> None:
    told = tell.running(tell.starting(RUNNING, EARLIER, None), EARLIER, 2)
    told = with_report(told, REPORT)
    told = tell.succeeded(told, LATER, TrainedReport.model_validate(TRAINED))
    assert told.progress is not None
    assert (told.progress.steps, told.progress.loss_text, told.progress.eta) == ("30/30", "2.250", None)
    assert told.completion_time == "2026-11-23T06:00:00Z"
    assert tell.answer(told, ConditionType.RUNNING) == "False"
    assert tell.is_finished(told)


def test_a_job_whose_last_report_is_lost_has_succeeded_all_the_same() -> None:
    told = tell.succeeded(NEW, EARLIER, None)
    assert told.phase == "Succeeded"
    assert told.result is None
    assert "lost" in told.conditions[-1].message


def test_failure_ends_the_attempt_and_says_so_in_every_condition_that_was_open() -> None:
    began = tell.attempt_begun(NEW, EARLIER, 1)
    told = tell.failed(tell.starting(began, EARLIER, None), LATER, Trouble("Diverged", "loss is NaN"))
    answers = {condition.type.value: (condition.status.value, condition.reason) for condition in told.conditions}
    assert answers == {
        "Prepared": ("False", "Diverged"),
        "Running": ("False", "Diverged"),
        "Failed": ("True", "Diverged"),
    }
    assert (told.attempts[0].ended, told.attempts[0].reason) == ("2026-11-23T06:00:00Z", "Diverged")


def test_a_refused_job_is_not_finished_because_its_spec_may_still_be_mended() -> None:
    told = tell.refused(NEW, EARLIER, Trouble("InvalidSpec", "spec.model: is missing"))
    assert told.phase == "Failed"
    assert not tell.is_finished(told)


def test_an_event_is_told_when_a_reason_changes_and_not_when_only_the_words_do() -> None:
    waits = tell.preparing(NEW, EARLIER, NO_ROOM)
    other_words = tell.preparing(waits, LATER, Trouble("Unschedulable", "0/3 nodes are available"))
    assert events_between(NEW, waits) == (JobEvent(EventType.WARNING, "Unschedulable", "0/2 nodes are available"),)
    assert events_between(waits, other_words) == ()
    assert events_between(waits, waits) == ()


def test_two_conditions_of_one_cause_are_one_event() -> None:
    started = tell.starting(NEW, EARLIER, None)
    told = tell.failed(started, LATER, Trouble("Diverged", "loss is NaN"))
    assert events_between(started, told) == (JobEvent(EventType.WARNING, "Diverged", "loss is NaN"),)


def test_a_long_message_is_cut_to_what_an_event_and_a_condition_may_hold() -> None:
    told = tell.failed(NEW, EARLIER, Trouble("Error", "x" * 100_000))
    assert len(told.conditions[-1].message) == 4096
    assert [len(event.note) for event in events_between(NEW, told)] == [1024]
