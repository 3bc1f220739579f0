"""Somebody deletes what a gang is made of."""

import pytest

from tests.e2e.faults.expected import assert_as_undisturbed
from tests.e2e.faults.fault import PYTORCH_JOB, Fault, disturbed_by
from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.outcome import Outcome
from tests.e2e.faults.run import Run
from tests.e2e.faults.tiny import STEPS_A_CHECKPOINT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

TRAIN = "finetune.dev/stage=train"


def delete_one_pod(run: Run) -> None:
    run.wait_for_checkpoint(STEPS_A_CHECKPOINT)
    pod = run.training_pods()[1]["metadata"]["name"]
    run.mark()
    run.kubectl.run("delete", "pod", pod, "--wait=false")


def delete_all_pods(run: Run) -> None:
    run.wait_for_checkpoint(STEPS_A_CHECKPOINT)
    run.mark()
    run.kubectl.run("delete", "pods", "--selector", TRAIN, "--wait=false")


def delete_gang(run: Run) -> None:
    run.wait_for_checkpoint(STEPS_A_CHECKPOINT)
    run.mark()
    run.kubectl.run("delete", run.fault.backend.lower(), "--selector", TRAIN, "--wait=false")


@disturbed_by(
    Fault("pod-deleted", "one pod deleted", delete_one_pod),
    Fault("pod-deleted-pytorch", "one pod deleted", delete_one_pod, PYTORCH_JOB),
    Fault("pods-deleted", "all pods deleted", delete_all_pods),
)
def test_a_deleted_pod_leaves_a_checkpoint_and_costs_no_step(outcome: Outcome, matrix: Matrix) -> None:
    assert_as_undisturbed(outcome, matrix)
    assert outcome.reasons == ["PodDeleted", "Succeeded"]
    assert outcome.steps_lost == 0


@disturbed_by(
    Fault("gang-deleted", "the Job of the gang deleted", delete_gang),
    Fault("gang-deleted-pytorch", "the PyTorchJob deleted", delete_gang, PYTORCH_JOB),
)
def test_a_deleted_gang_is_made_anew_and_goes_on(outcome: Outcome, matrix: Matrix) -> None:
    assert_as_undisturbed(outcome, matrix)
    assert outcome.reasons == ["TrainJobDeleted", "Succeeded"]
