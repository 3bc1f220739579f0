"""What follows from each way in which a gang can end; the rows of the design's failure table, one by one."""

import pytest

from finetune_operator.failure_table import FAILURES, Remedy, consequence_of, remedy
from finetune_operator.names import ConditionReason
from finetune_trainer.contract.termination import Reason

ROWS = {
    "a spec that is wrong": ("InvalidSpec", Remedy.FAIL),
    "a model that is not there": ("ModelUnavailable", Remedy.FAIL),
    "a model that cannot be trained": ("ModelUnsupported", Remedy.FAIL),
    "data that is not there": ("DataUnavailable", Remedy.FAIL),
    "a bad row": ("DataInvalid", Remedy.FAIL),
    "a plan that does not fit the GPUs": ("WillNotFit", Remedy.FAIL),
    "a loss that is NaN": ("Diverged", Remedy.FAIL),
    "CUDA out of memory": ("OutOfGPUMemory", Remedy.FAIL),
    "a filesystem that the trainer may not write to": ("StorageNotWritable", Remedy.FAIL),
    "checkpoints that are all damaged": ("CheckpointUnusable", Remedy.FAIL),
    "an adapter that is not good enough": ("GateNotMet", Remedy.FAIL),
    "an adapter that the Hub does not take": ("UploadFailed", Remedy.FAIL),
    "no space left": ("StorageFull", Remedy.RESTART_ONCE),
    "a GPU that does not answer": ("DeviceUnavailable", Remedy.RESTART_ONCE),
    "an error that nobody foresaw": ("Error", Remedy.RESTART_ONCE),
    "a lost connection": ("CollectiveFailed", Remedy.RESTART),
    "a SIGTERM that the operator did not ask for": ("Terminated", Remedy.RESTART),
    "a signal": ("Killed", Remedy.RESTART),
    "host memory that ran out": ("OOMKilled", Remedy.RESTART),
    "an eviction": ("Evicted", Remedy.RESTART),
    "a preemption": ("Preempted", Remedy.RESTART),
    "a dead node": ("NodeLost", Remedy.RESTART),
    "a node that refuses the pod": ("PodRejected", Remedy.RESTART),
    "a deleted pod": ("PodDeleted", Remedy.RESTART),
    "a deleted Job": ("TrainJobDeleted", Remedy.RESTART),
    "a pod that is gone without a word": ("JobFailed", Remedy.RESTART),
    "no step for long": ("Stalled", Remedy.RESTART),
    "a job that took too long": ("DeadlineExceeded", Remedy.FAIL),
    "an image that reports nothing": ("ReportMissing", Remedy.FAIL),
}

# Reasons of conditions that tell where a job stands or what it waits for: no gang ends for them.
NO_END = {
    "Accepted",
    "Preparing",
    "Prepared",
    "Starting",
    "Running",
    "Suspending",
    "Suspended",
    "Resumed",
    "CheckpointLoaded",
    "CheckpointCorrupt",
    "StorageShort",
    "StorageSuffices",
    "Succeeded",
    "InvalidSpec",
    "ClaimMissing",
    "BackendMissing",
    "ClaimPending",
    "StorageClassMissing",
    "NameTaken",
    "FormerJobLeaving",
    "Refused",
    "PodsRefused",
    "Unschedulable",
    "ImagePullFailed",
    "ContainerNotCreated",
    "VolumeNotMounted",
    "Queued",
    "Trained",
    "Evaluating",
    "Evaluated",
    "BudgetSpent",
    "PricesMissing",
}


@pytest.mark.parametrize("case", ROWS)
def test_what_follows_from(case: str) -> None:
    reason, expected = ROWS[case]
    assert remedy(reason) is expected


def test_every_reason_for_which_a_container_ends_has_a_row() -> None:
    assert set(Reason) - {Reason.SUCCEEDED} <= set(FAILURES)


def test_every_reason_that_the_operator_finds_has_a_row_or_ends_no_gang() -> None:
    assert {reason.value for reason in ConditionReason} - set(FAILURES) <= NO_END


def test_every_row_of_the_table_is_told_of_above() -> None:
    assert {reason for reason, _ in ROWS.values()} == {str(reason) for reason in FAILURES}


def test_a_reason_of_a_newer_operator_is_not_tried_again() -> None:
    assert consequence_of("FromTheFuture").remedy is Remedy.FAIL


def test_why_is_a_half_sentence_that_can_follow_because() -> None:
    for row in FAILURES.values():
        assert row.why[0].islower()
        assert not row.why.endswith(".")
