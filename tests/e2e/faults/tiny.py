"""The job that is disturbed: a tiny random Llama on two nodes, over in seconds where nothing happens to it."""

from tests.e2e.faults.fault import Fault
from tests.e2e.jobs import SHARED_CLASS, tiny_job
from tests.e2e.kubectl import Manifest

TOTAL_STEPS = 160
STEPS_A_CHECKPOINT = 10
# Processes get half of it for their last checkpoint.
GRACE_SECONDS = 20

SPEC = {
    "training__epochs": TOTAL_STEPS // 4,
    "training__maxStepsPerEpoch": 4,
    "training__maxSequenceLength": 256,
    "training__batchSize": 1,
    "training__gradientAccumulation": 2,
    "training__activationCheckpointing": False,
    # What is dropped follows from seed and step, so that a run which went on elsewhere shows where it erred.
    "lora__dropout": 0.1,
    "checkpoint": {"everySteps": STEPS_A_CHECKPOINT, "keep": 2},
    "storage": {"shared": {"size": "1Gi", "storageClassName": SHARED_CLASS}},
    "runPolicy": {"terminationGracePeriodSeconds": GRACE_SECONDS},
}


def manifest_of(fault: Fault) -> Manifest:
    """Return the job that a fault is struck at."""
    return tiny_job(fault.name, **{**SPEC, "compute__backend": fault.backend, **fault.spec})
