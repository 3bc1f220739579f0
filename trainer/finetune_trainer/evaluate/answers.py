"""What a model writes where the held-out rows have a turn of the assistant, and the calls in it."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.evaluate.turns import Turn
from finetune_trainer.inference.decoder import Decoder
from finetune_trainer.inference.dialect import Dialect
from finetune_trainer.inference.generate import Writing, generate
from finetune_trainer.toolcalls import CallStyle, ParsedTurn, parse_turn

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_SECONDS = 10.0


@dataclass(frozen=True)
class Answer:
    """A turn that a model wrote."""

    text: str
    ended: bool  # False: cut at maxNewTokens
    strict: ParsedTurn  # as a server reads it
    lenient: ParsedTurn  # as a patient person reads it


def write_answers(
    decoder: Decoder, turns: Sequence[Turn], dialect: Dialect, writing: Writing, batch_size: int
) -> list[Answer]:
    """Let a model write every turn.

    A model whose template writes calls in a notation that no parser knows is read leniently throughout.

    Raises:
        torch.OutOfMemoryError: not even one turn fits the GPU's memory.
    """
    model = "tuned" if writing.adapted else "base"
    said_at = time.monotonic()

    def tell(num_written: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at > PROGRESS_INTERVAL_SECONDS:
            said_at = time.monotonic()
            logger.info("%s model: %d of %d turns written", model, num_written, len(turns))

    answers = []
    for written in generate(decoder, [turn.prompt for turn in turns], writing, batch_size, tell):
        text = dialect.decode(written.tokens)
        lenient = parse_turn(text, dialect.style or CallStyle.HERMES, lenient=True)
        strict = lenient if dialect.style is None else parse_turn(text, dialect.style)
        answers.append(Answer(text, written.ended, strict, lenient))
    return answers
