"""A base model with its adapter, found on the shared filesystem and loaded."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from finetune_trainer.architecture import read_shape
from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.conversation import Conversation
from finetune_trainer.data.template import load_tokenizer
from finetune_trainer.errors import TrainerError
from finetune_trainer.hub import cached_model
from finetune_trainer.inference.adapter import ADAPTER_CONFIG, read_adapter
from finetune_trainer.inference.decoder import Decoder, load_decoder
from finetune_trainer.inference.dialect import Dialect, find_stop_tokens
from finetune_trainer.inference.generate import Writing, generate
from finetune_trainer.toolcalls import CallStyle, ParsedTurn, parse_turn


@dataclass(frozen=True)
class Choice:
    """Which model is asked, and on what."""

    adapter: Path | None  # None: the base model alone
    model: Path | None  # directory of the base model; None: the one that the adapter names
    shared: Path  # the shared filesystem, where models are cached
    device: torch.device


@dataclass(frozen=True)
class Model:
    """A model that is ready to be asked."""

    decoder: Decoder
    dialect: Dialect
    stop_tokens: frozenset[int]
    adapted: bool

    def prompt(self, conversation: Conversation) -> npt.NDArray[np.int32]:
        """Return the tokens before the answer to a conversation. Raises BadRowError."""
        return self.dialect.prompt(*self.dialect.renderer.template.spell(conversation))

    def answer(
        self, prompts: list[npt.NDArray[np.int32]], max_new_tokens: int, batch_size: int, temperature: float = 0.0
    ) -> list[str]:
        """Return what the model writes after each prompt."""
        writing = Writing(self.stop_tokens, max_new_tokens, self.adapted, temperature)
        written = generate(self.decoder, prompts, writing, batch_size)
        return [self.dialect.decode(turn.tokens) for turn in written]

    def read(self, text: str, *, lenient: bool = False) -> ParsedTurn:
        """Return the calls in an answer; leniently where no parser knows the notation of the model's template."""
        style = self.dialect.style
        return parse_turn(text, style or CallStyle.HERMES, lenient=lenient or style is None)


def load_model(choice: Choice) -> Model:
    """Load a base model and its adapter: in bf16 on a GPU, in fp32 on a CPU.

    Raises:
        TrainerError: MODEL_UNAVAILABLE or MODEL_UNSUPPORTED, with what to do.
    """
    directory = choice.model or _find_base(choice)
    shape = read_shape(directory)
    adapter = read_adapter(choice.adapter, shape) if choice.adapter is not None else None
    tokenizer = load_tokenizer(directory)
    dialect = Dialect(tokenizer)
    dtype = torch.bfloat16 if choice.device.type == "cuda" else torch.float32
    decoder = load_decoder(directory, shape, dtype, choice.device, adapter)
    return Model(decoder, dialect, find_stop_tokens(dialect, tokenizer, directory), adapter is not None)


def _find_base(choice: Choice) -> Path:
    """Find the base model that an adapter names: in the model cache, or at a path of the shared filesystem."""
    if choice.adapter is None:
        raise TrainerError(Reason.MODEL_UNAVAILABLE, "name a model with --model, or an adapter with --adapter")
    path = choice.adapter / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name, revision = str(config["base_model_name_or_path"]), str(config.get("revision"))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise TrainerError(
            Reason.MODEL_UNAVAILABLE, f"{path}: does not name a base model ({error}); name its directory with --model"
        ) from error
    found = cached_model(choice.shared / "models", name, revision)
    if found is None and (choice.shared / name).is_dir():
        found = choice.shared / name
    if found is None:
        raise TrainerError(
            Reason.MODEL_UNAVAILABLE,
            f"{choice.adapter}: its base model {name} (revision {revision}) is not in {choice.shared / 'models'}: say "
            "with --shared where the shared filesystem is, or with --model where the base model is",
        )
    return found
