"""What follows from each way in which a gang can end: the failure table.

Pure, and the one place where it stands whether a failure is tried again. What may pass by itself is tried again from
the last good checkpoint; what would fail the same way again is not, for every try holds all GPUs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from finetune_operator.names import ConditionReason
from finetune_trainer.contract.termination import Reason


class Remedy(StrEnum):
    """What follows from a failure."""

    FAIL = "Fail"
    """The job has failed: the same would happen again."""
    RESTART = "Restart"
    """A new attempt from the last good checkpoint, as often as spec.runPolicy.maxRestarts allows."""
    RESTART_ONCE = "RestartOnce"
    """A new attempt, unless an attempt of this job has ended for this reason before."""


@dataclass(frozen=True)
class Consequence:
    """A row of the table."""

    remedy: Remedy
    why: str
    """Half a sentence that can follow upon `because`."""


def _fail(why: str) -> Consequence:
    return Consequence(Remedy.FAIL, why)


def _restart(why: str) -> Consequence:
    return Consequence(Remedy.RESTART, why)


def _restart_once(why: str) -> Consequence:
    return Consequence(Remedy.RESTART_ONCE, why)


FAILURES: Mapping[str, Consequence] = {
    # What the user wrote, or put into the data and the model.
    Reason.INVALID_SPEC: _fail("the spec has to be changed"),
    Reason.MODEL_UNAVAILABLE: _fail("the model that was prepared is not where it was; it has to be prepared again"),
    Reason.MODEL_UNSUPPORTED: _fail("this trainer cannot train the model"),
    Reason.DATA_UNAVAILABLE: _fail("the data that was prepared is not where it was; it has to be prepared again"),
    Reason.DATA_INVALID: _fail("the data has to be changed"),
    Reason.WILL_NOT_FIT: _fail("the plan needs more memory than a GPU has"),
    Reason.OUT_OF_GPU_MEMORY: _fail("the same step would need the same memory again"),
    Reason.DIVERGED: _fail("the same steps would diverge again; the last good checkpoint is kept"),
    Reason.STORAGE_NOT_WRITABLE: _fail("somebody has to make the filesystem writable for the trainer's user"),
    Reason.CHECKPOINT_UNUSABLE: _fail(
        "none of the checkpoints can be read, and the first step is not gone back to unasked"
    ),
    Reason.GATE_NOT_MET: _fail("the adapter would be as good another time"),
    Reason.UPLOAD_FAILED: _fail("the Hub refused it or could not be reached; the adapter is on the shared filesystem"),
    # What one more try can tell from what is broken for good.
    Reason.STORAGE_FULL: _restart_once("old checkpoints are removed before a new attempt, which may make room"),
    Reason.DEVICE_UNAVAILABLE: _restart_once("the GPUs of another node may be whole"),
    Reason.ERROR: _restart_once("an error that nobody foresaw may have been a passing one"),
    # What happened to the gang from outside.
    Reason.COLLECTIVE_FAILED: _restart("a process was lost, or the network between the nodes"),
    Reason.TERMINATED: _restart("somebody stopped the pod, and the operator did not ask for it"),
    Reason.KILLED: _restart("a process was killed from outside"),
    ConditionReason.OOM_KILLED: _restart("memory that ran out once may suffice from the checkpoint on"),
    ConditionReason.EVICTED: _restart("its node had to give the pod up"),
    ConditionReason.PREEMPTED: _restart("a pod of higher priority took the place"),
    ConditionReason.NODE_LOST: _restart("other nodes can take over"),
    ConditionReason.POD_REJECTED: _restart("another node may take the pod"),
    ConditionReason.POD_DELETED: _restart("somebody deleted a pod of the gang"),
    ConditionReason.TRAIN_JOB_DELETED: _restart("somebody deleted a Job of the gang"),
    ConditionReason.JOB_FAILED: _restart("the pod that could tell more is gone, as when its node is lost"),
    ConditionReason.STALLED: _restart("a gang that hangs does not go on by itself"),
    # What the operator decides itself.
    ConditionReason.DEADLINE_EXCEEDED: _fail("the time that spec.runPolicy.activeDeadlineSeconds allows is over"),
    ConditionReason.REPORT_MISSING: _fail("the image does not hold a trainer of the operator's version"),
}

_UNKNOWN = _fail("this version of the operator does not know the reason")


def consequence_of(reason: str) -> Consequence:
    """Return what follows when a gang ends for a reason; one that only a newer operator knows is not tried again."""
    return FAILURES.get(reason, _UNKNOWN)


def remedy(reason: str) -> Remedy:
    """Return what is to be done when a gang ends for a reason."""
    return consequence_of(reason).remedy
