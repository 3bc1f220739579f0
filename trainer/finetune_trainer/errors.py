"""The one error of the trainer: a reason from the contract, and a message that says what to do."""

from finetune_trainer.contract.termination import Reason


class TrainerError(Exception):
    """Something a person has to know about, and mostly can mend; it becomes the container's termination message."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
