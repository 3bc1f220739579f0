"""From a conversation to tokens, and which of them the model is to learn.

What the model reads is exactly what it will read when it is used: the text of its own chat template. What it learns is
exactly what it will have to write: each turn of the assistant, from behind the template's generation prompt to the
token that ends the turn.
"""

import json
import re
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from finetune_trainer.data.conversation import BadRowError, Conversation, JsonObject, Role
from finetune_trainer.data.template import ChatTemplate, ChatTurn

# JSON may hold half of a character beyond the Basic Multilingual Plane; no tokenizer takes it.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """Tokens that are read as one text."""

    tokens: npt.NDArray[np.int32]  # [num_tokens]
    trained: npt.NDArray[np.bool_]  # [num_tokens]; True where the assistant wrote the token


@dataclass(frozen=True)
class MarkedText:
    """A text, and the half-open ranges of its characters that the assistant wrote."""

    text: str
    spans: tuple[tuple[int, int], ...]


class Renderer:
    """Turns conversations into documents with a model's tokenizer and chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.template = ChatTemplate(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special_tokens = tuple(sorted(special | set(tokenizer.all_special_tokens)))
        # Those that the template builds turns of; others (a tokenizer may have <filename>) do no harm in what is said.
        markup = json.dumps(tokenizer.chat_template, ensure_ascii=False) + "".join(
            tokenizer.special_tokens_map.values()
        )
        marks = [re.escape(token) for token in self._special_tokens if token in markup]
        self._turn_mark = re.compile("|".join(marks) or "(?!)")

    @property
    def ends_turns(self) -> bool:
        """Whether the template ends a turn of the assistant with a token that generation can stop at."""
        marked = self._mark([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], None)[0]
        return marked.text[: marked.spans[-1][1]].endswith(self._special_tokens)

    def render(self, conversation: Conversation) -> list[Document]:
        """Return the documents of a conversation: one, unless the template writes the past anew with each turn.

        Raises:
            BadRowError: the template refuses the conversation, or a turn contains a token that marks turns.
        """
        for number, message in enumerate(conversation.messages, start=1):
            calls = json.dumps([asdict(call) for call in message.tool_calls], ensure_ascii=False)
            if found := self._turn_mark.search(message.content) or self._turn_mark.search(calls):
                raise BadRowError(f"turn {number}: contains {found[0]!r}, with which this model's template marks turns")
        return [self._tokenise(marked) for marked in self._mark(*self.template.spell(conversation))]

    def _mark(self, turns: list[ChatTurn], tools: list[JsonObject] | None) -> list[MarkedText]:
        """Render turn by turn, and see what each turn of the assistant adds to the prompt before it.

        Some templates write the past differently once there is more of it (Mistral puts the tools before the last
        user turn). The past of an earlier turn is then no prefix of the past of a later one, and each gets a document
        of its own, as the model will see it.
        """
        documents: list[MarkedText] = []
        text = ""
        spans: list[tuple[int, int]] = []
        for number, turn in enumerate(turns):
            if turn["role"] != Role.ASSISTANT:
                continue
            prompt = self.template.text(turns[:number], tools, add_generation_prompt=True)
            whole = self.template.text(turns[: number + 1], tools, add_generation_prompt=False)
            if not whole.startswith(prompt):
                raise BadRowError(
                    f"turn {number + 1}: the model's chat template writes the assistant's turn differently from what "
                    "its generation prompt announces"
                )
            if not prompt.startswith(text):
                documents.append(MarkedText(text, tuple(spans)))
                spans = []
            text = whole
            spans.append((len(prompt), self._end_of_turn(whole, len(prompt))))
        return [*documents, MarkedText(text, tuple(spans))]

    def _end_of_turn(self, text: str, start: int) -> int:
        # Line breaks behind the token that ends the turn belong to the template: generation has stopped by then.
        stripped = text.rstrip()
        return len(stripped) if len(stripped) > start and stripped.endswith(self._special_tokens) else len(text)

    def _tokenise(self, marked: MarkedText) -> Document:
        if half := _LONE_SURROGATE.search(marked.text):
            raise BadRowError(f"contains half of a character ({half[0]!r})")
        # The template has written the special tokens at the beginning already.
        encoding = self._backend.encode(marked.text, add_special_tokens=False)
        starts = np.fromiter((start for start, _ in encoding.offsets), dtype=np.int64, count=len(encoding.offsets))
        trained = np.zeros(len(starts), dtype=np.bool_)
        for start, end in marked.spans:
            # A token that begins before the assistant's words is part of the prompt when the model is used.
            trained |= (starts >= start) & (starts < end)
        return Document(np.array(encoding.ids, dtype=np.int32), trained)
