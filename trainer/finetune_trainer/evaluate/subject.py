"""What is scored, laid ready: base model and adapter in one load, and the questions for both."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetune_trainer.architecture import read_shape
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import PreparedReport, Reason
from finetune_trainer.data.conversation import BadRowError
from finetune_trainer.data.heldout import HeldOutRow
from finetune_trainer.data.render import Document
from finetune_trainer.data.template import load_tokenizer
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluate.likelihood import document_losses
from finetune_trainer.evaluate.statistics import Floats
from finetune_trainer.evaluate.turns import Turn, make_turns
from finetune_trainer.inference.adapter import read_adapter
from finetune_trainer.inference.decoder import Decoder, load_decoder
from finetune_trainer.inference.device import find_device
from finetune_trainer.inference.dialect import Dialect, find_stop_tokens

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Subject:
    """Base and tuned model, and what they are asked."""

    decoder: Decoder
    dialect: Dialect
    stop_tokens: frozenset[int]
    turns: Sequence[Turn]
    num_turns_left_out: int  # the model cannot read what stands before them
    documents: Sequence[Document]  # of the held-out rows, cut as in training
    row_of_document: Sequence[int]
    num_rows: int

    def row_losses(self, *, adapted: bool) -> tuple[Floats, Floats]:
        """Return for each row the summed loss and the number of its trained tokens, [num_rows] each."""
        losses, counts = np.zeros(self.num_rows), np.zeros(self.num_rows)
        of_documents = document_losses(self.decoder, self.documents, adapted=adapted)
        for sums, values in zip((losses, counts), of_documents, strict=True):
            np.add.at(sums, self.row_of_document, values)
        return losses, counts


def load_subject(job: TrainerJob, paths: JobPaths, prepared: PreparedReport, rows: Sequence[HeldOutRow]) -> Subject:
    """Load base model and adapter, and make the questions.

    Raises:
        TrainerError: DEVICE_UNAVAILABLE, DATA_INVALID, or what is wrong with model or adapter.
    """
    directory = paths.shared / prepared.model_path
    shape = read_shape(directory)
    device = find_device(job.spec.compute.device)
    adapter = read_adapter(paths.adapter, shape, prepared.model.partition("@")[0])
    tokenizer = load_tokenizer(directory)
    dialect = Dialect(tokenizer)
    try:
        turns = make_turns(rows, dialect, job.spec.evaluation.max_turns)
        documents = [
            (index, document)
            for index, row in enumerate(rows)
            for document in dialect.renderer.render(row.conversation)
        ]
    except BadRowError as error:
        raise TrainerError(
            Reason.DATA_INVALID, f"a held-out row is not what prepare left: {error}. Run prepare again"
        ) from error
    length = job.spec.training.max_sequence_length
    readable = [turn for turn in turns if len(turn.prompt) < shape.max_positions]
    return Subject(
        decoder=load_decoder(directory, shape, DTYPES[prepared.precision], device, adapter),
        dialect=dialect,
        stop_tokens=find_stop_tokens(dialect, tokenizer, directory),
        turns=readable,
        num_turns_left_out=len(turns) - len(readable),
        documents=[Document(document.tokens[:length], document.trained[:length]) for _, document in documents],
        row_of_document=[index for index, _ in documents],
        num_rows=len(rows),
    )
