"""The one error of the trainer: a reason from the contract, and a message that says what to do."""

from finetune_trainer.contract.progress import ProgressReport
from finetune_trainer.contract.termination import Reason


class TrainerError(Exception):
    """Something a person has to know about, and mostly can mend; it becomes the container's termination message.

    Args:
        reason: why the container ends.
        message: what happened, where, and what to do.
        rank: process of the gang that it happened in, when it was one.
        step: steps that were done before, when it was in the training.
        checkpoint: name of the newest checkpoint, when there is one.
        progress: how far the training had come, where this process knows.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        rank: int | None = None,
        step: int | None = None,
        checkpoint: str | None = None,
        progress: ProgressReport | None = None,
    ) -> None:
        super().__init__(reason, message)  # both, so that it can be sent from one process to another
        self.reason = reason
        self.message = message
        self.rank = rank
        self.step = step
        self.checkpoint = checkpoint
        self.progress = progress

    def __str__(self) -> str:
        return self.message
