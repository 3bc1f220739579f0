"""What becomes of one row: read, checked, rendered, tokenised, cut. Pure, so that rows can be worked on anywhere."""

from dataclasses import dataclass

from finetune_trainer.contract.dataset import ConversationSource, DatasetFormat, EvaluationDataset
from finetune_trainer.contract.spec import Overlong, Training
from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.check import check_calls, check_size
from finetune_trainer.data.conversation import BadRowError, Conversation
from finetune_trainer.data.formats import parse_row
from finetune_trainer.data.read import Row
from finetune_trainer.data.render import Document, Renderer
from finetune_trainer.data.split import fingerprint, is_held_out
from finetune_trainer.errors import TrainerError

# Why rows without a defect are left out, as the report counts them.
OVERLONG = "longer than maxSequenceLength"
NOTHING_TRAINED = "assistant only beyond maxSequenceLength"
NOT_DRAWN = "not drawn, as weight is below 1"
ALSO_SCORED = "also in evaluation.datasets"


@dataclass(frozen=True)
class Outcome:
    """What became of a row."""

    place: str
    error: BadRowError | None = None
    left_out: str | None = None  # why a row without a defect is not used
    documents: tuple[Document, ...] = ()  # cut to the length of a sequence
    num_tokens: int = 0  # before they were cut
    is_cut: bool = False
    fingerprint: int = 0
    tools: tuple[str, ...] = ()  # names of the functions that could be called
    calls: tuple[str, ...] = ()  # and of those that were
    held_out: Conversation | None = None  # the row is not trained on but scored


@dataclass(frozen=True)
class RowWork:
    """All that is needed to work on rows; can be sent to another process."""

    renderer: Renderer
    training: Training
    holdout_share: float  # of the rows to train on, 0 to 1
    vocab_size: int

    def outcome(self, row: Row, dataset: ConversationSource) -> Outcome:
        """Say what becomes of a row.

        Raises:
            TrainerError: MODEL_UNSUPPORTED when the tokenizer makes tokens that the model does not have.
        """
        try:
            conversation = self._conversation(row, dataset.format)
            documents = self.renderer.render(conversation)
        except BadRowError as error:
            return Outcome(row.place, error=error)
        self._check_vocabulary(documents)
        share = 1.0 if isinstance(dataset, EvaluationDataset) else self.holdout_share
        return self._fitted(row, conversation, documents, share)

    def _conversation(self, row: Row, dataset_format: DatasetFormat) -> Conversation:
        conversation = parse_row(row.parsed(), dataset_format)
        check_size(conversation)
        check_calls(conversation)
        return conversation

    def _fitted(self, row: Row, conversation: Conversation, documents: list[Document], holdout_share: float) -> Outcome:
        """Cut or leave out what is longer than a sequence, and leave out what trains nothing."""
        length = self.training.max_sequence_length
        is_overlong = any(len(document.tokens) > length for document in documents)
        if is_overlong and self.training.overlong is Overlong.DROP:
            return Outcome(row.place, left_out=OVERLONG)
        cut = [Document(document.tokens[:length], document.trained[:length]) for document in documents]
        # The first token of a document is predicted by nothing.
        fitted = tuple(document for document in cut if document.trained[1:].any())
        if not fitted:
            return Outcome(row.place, left_out=NOTHING_TRAINED)
        identity = fingerprint(conversation)
        return Outcome(
            place=row.place,
            documents=fitted,
            num_tokens=sum(len(document.tokens) for document in documents),
            is_cut=is_overlong,
            fingerprint=identity,
            tools=tuple(tool["function"]["name"] for tool in conversation.tools),
            calls=tuple(call.name for message in conversation.messages for call in message.tool_calls),
            held_out=conversation if is_held_out(identity, holdout_share) else None,
        )

    def _check_vocabulary(self, documents: list[Document]) -> None:
        largest = max(int(document.tokens.max(initial=0)) for document in documents)
        if largest >= self.vocab_size:
            raise TrainerError(
                Reason.MODEL_UNSUPPORTED,
                f"the tokenizer makes token {largest}, but the model has {self.vocab_size}: tokenizer.json and "
                "config.json belong to different models",
            )
