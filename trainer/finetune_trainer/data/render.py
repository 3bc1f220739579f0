"""From a conversation to tokens, and which of them the model is to learn.

What the model reads is exactly what it will read when it is used: the text of its own chat template. What it learns is
exactly what it will have to write: each turn of the assistant, from behind the template's generation prompt to the
token that ends the turn.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.conversation import BadRowError, Conversation, Defect, JsonObject, Role, ToolCall
from finetune_trainer.data.template import PROBES, ChatTemplate, ChatTurn
from finetune_trainer.errors import TrainerError

# JSON may hold half of a character beyond the Basic Multilingual Plane; no tokenizer takes it.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

# First turns whose tokens are kept, in each process: a few megabytes.
KEPT_HEADS = 256
LONGEST_KEPT_HEAD = 32_768  # characters


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
        """Find out how the template marks turns.

        Raises:
            TrainerError: MODEL_UNSUPPORTED when it cannot write a chat, or ends turns with no token of its own.
        """
        self.template = ChatTemplate(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special_tokens: tuple[str, ...] = tuple(sorted(special | set(tokenizer.all_special_tokens)))
        # Those that the template builds turns of; others (a tokenizer may have <filename>) do no harm in what is said.
        markup = json.dumps(tokenizer.chat_template, ensure_ascii=False) + "".join(
            tokenizer.special_tokens_map.values()
        )
        marks = [re.escape(token) for token in self._special_tokens if token in markup]
        self._turn_mark = re.compile("|".join(marks) or "(?!)")
        self.end_of_turn = self._find_end_of_turn()
        self._opening = self._find_opening()
        self._heads: dict[str, npt.NDArray[np.int32]] = {}
        self._keeps_heads = self._splits_at_turns()

    def render(self, conversation: Conversation) -> list[Document]:
        """Return the documents of a conversation: one, unless the template writes the past anew with each turn.

        Raises:
            BadRowError: the template refuses the conversation, or a turn contains a token that marks turns.
        """
        return [self.tokenise(marked) for marked in self.mark(conversation)]

    def mark(self, conversation: Conversation) -> list[MarkedText]:
        """Return the texts of a conversation, and what the assistant wrote of them.

        Raises:
            BadRowError: the template refuses the conversation, or a turn contains a token that marks turns.
        """
        for number, message in enumerate(conversation.messages, start=1):
            if found := self._turn_mark.search(message.content) or self._mark_in_calls(message.tool_calls):
                raise BadRowError(
                    f"turn {number}: contains {found[0]!r}, with which this model's template marks turns: write it "
                    "differently",
                    Defect.REFUSED_BY_TEMPLATE,
                )
        turns, tools = self.template.spell(conversation)
        marked = self._mark_at_once(turns, tools) or self._mark_turn_by_turn(turns, tools)
        for one in marked:
            if half := _LONE_SURROGATE.search(one.text):
                raise BadRowError(f"contains half of a character ({half[0]!r}): remove it")
        return marked

    def tokenise(self, marked: MarkedText) -> Document:
        """Return the tokens of a text, with those trained that begin within what the assistant wrote.

        Many rows begin with the same turn, which explains the same tools: its tokens are kept.
        """
        head = self._head(marked)
        if not head:
            return self._tokenise(marked)
        tokens = self._heads.get(head)
        if tokens is None:
            tokens = self._tokenise(MarkedText(head, ())).tokens
            if len(self._heads) == KEPT_HEADS:
                del self._heads[next(iter(self._heads))]
            self._heads[head] = tokens
        spans = tuple((start - len(head), end - len(head)) for start, end in marked.spans)
        rest = self._tokenise(MarkedText(marked.text[len(head) :], spans))
        untrained = np.zeros(len(tokens), dtype=np.bool_)
        return Document(np.concatenate([tokens, rest.tokens]), np.concatenate([untrained, rest.trained]))

    def _head(self, marked: MarkedText) -> str:
        """Return the first turn, where its tokens may be kept; else an empty text."""
        cut = marked.text.find(self.end_of_turn) + len(self.end_of_turn)
        is_prompt = all(start >= cut for start, _ in marked.spans)
        return marked.text[:cut] if self._keeps_heads and is_prompt and cut <= LONGEST_KEPT_HEAD else ""

    def _tokenise(self, marked: MarkedText) -> Document:
        # The template has written the special tokens at the beginning already.
        encoding = self._backend.encode(marked.text, add_special_tokens=False)
        trained = np.zeros(len(encoding), dtype=np.bool_)
        for start, end in marked.spans:
            # A token that begins before the assistant's words is part of the prompt when the model is used.
            trained[_first_token(encoding, start) : _first_token(encoding, end)] = True
        return Document(np.array(encoding.ids, dtype=np.int32), trained)

    def _splits_at_turns(self) -> bool:
        """Whether the text behind a turn has the same tokens when it is tokenised alone.

        A tokenizer cuts a text at special tokens before anything else, but some then put a space before what follows.
        """
        for marked in self._marked_probes():
            cut = marked.text.find(self.end_of_turn) + len(self.end_of_turn)
            parts = (MarkedText(marked.text[:cut], ()), MarkedText(marked.text[cut:], ()))
            apart = np.concatenate([self._tokenise(part).tokens for part in parts])
            if not np.array_equal(apart, self._tokenise(marked).tokens):
                return False
        return True

    def _marked_probes(self) -> Iterator[MarkedText]:
        for conversation in PROBES:
            try:
                yield from self._mark_turn_by_turn(*self.template.spell(conversation))
            except BadRowError:
                continue

    def show(self, document: Document) -> list[tuple[str, bool]]:
        """Return the text of a document, in pieces, each with whether its tokens are trained."""
        edges = [0, *(np.flatnonzero(np.diff(document.trained)) + 1).tolist(), len(document.tokens)]
        return [
            (
                str(self._backend.decode(document.tokens[start:end].tolist(), skip_special_tokens=False)),
                bool(document.trained[start]),
            )
            for start, end in pairwise(edges)
        ]

    def _mark_in_calls(self, calls: tuple[ToolCall, ...]) -> re.Match[str] | None:
        if not calls:
            return None
        words = [(call.name, call.arguments) for call in calls]
        return self._turn_mark.search(json.dumps(words, ensure_ascii=False))

    def _mark_at_once(self, turns: list[ChatTurn], tools: list[JsonObject] | None) -> list[MarkedText] | None:
        """Render once and look for the openings of the assistant's turns; None where that cannot be relied on.

        The time of rendering turn by turn grows with the square of their number. An opening holds a token that marks
        turns, and no turn's content does, so whatever looks like an opening is one.
        """
        if self._opening is None:
            return None
        text = self.template.text(turns, tools, add_generation_prompt=False)
        spans = []
        for found in self._opening.finditer(text):
            end = text.find(self.end_of_turn, found.end())
            if end < 0:
                return None
            spans.append((found.end(), end + len(self.end_of_turn)))
        answers = [turn for turn in turns if turn["role"] == Role.ASSISTANT]
        if len(spans) != len(answers):
            return None
        trained = (span for span, turn in zip(spans, answers, strict=True) if _is_trained(turn))
        return [MarkedText(text, tuple(trained))]

    def _mark_turn_by_turn(self, turns: list[ChatTurn], tools: list[JsonObject] | None) -> list[MarkedText]:
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
                    "its generation prompt announces: leave the row out, or take another model",
                    Defect.REFUSED_BY_TEMPLATE,
                )
            if not prompt.startswith(text):
                documents.append(MarkedText(text, tuple(spans)))
                spans = []
            text = whole
            if _is_trained(turn):
                spans.append((len(prompt), self._end_of_turn(whole, len(prompt))))
        return [*documents, MarkedText(text, tuple(spans))]

    def _end_of_turn(self, text: str, start: int) -> int:
        # Line breaks behind the token that ends the turn belong to the template: generation has stopped by then.
        stripped = text.rstrip()
        return len(stripped) if len(stripped) > start and stripped.endswith(self._special_tokens) else len(text)

    def _find_end_of_turn(self) -> str:
        question: list[ChatTurn] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        text = self.template.text(question, None, add_generation_prompt=False).rstrip()
        for token in sorted(self._special_tokens, key=len, reverse=True):
            if text.endswith(token):
                return token
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"the model's chat template ends the assistant's turn with {text[-20:]!r}, which is no special token of "
            "its tokenizer: a model that is tuned with it would never learn to stop. In a copy of the model's "
            "directory (spec.model.path) let the template write eos_token behind what the assistant says, and name "
            "that token in tokenizer_config.json",
        )

    def _find_opening(self) -> re.Pattern[str] | None:
        """Return what opens each turn of the assistant; None for a template that must be rendered turn by turn.

        That is one which writes the past anew as a conversation goes on, or opens turns with no token of its own. It
        is found out by marking conversations of every kind in both ways.
        """
        question: list[ChatTurn] = [{"role": "user", "content": "a"}]
        asked = self.template.text(question, None, add_generation_prompt=False)
        prompt = self.template.text(question, None, add_generation_prompt=True)
        opening = prompt[len(asked) :]
        if not prompt.startswith(asked) or not self._turn_mark.search(opening):
            return None
        self._opening = re.compile(re.escape(opening))
        for conversation in PROBES:
            try:
                turns, tools = self.template.spell(conversation)
                slowly = self._mark_turn_by_turn(turns, tools)
            except BadRowError:
                continue
            if self._mark_at_once(turns, tools) != slowly:
                return None
        return self._opening


def _is_trained(turn: ChatTurn) -> bool:
    return turn.get("weight") != 0


def _first_token(encoding: Encoding, character: int) -> int:
    """Return the first token that begins at a character or behind it; the beginnings of tokens never decrease."""

    def beginning(token: int) -> int:
        characters = encoding.token_to_chars(token)
        assert characters is not None, "the text has no tokens that belong to no text"
        return int(characters[0])

    token = encoding.char_to_token(character)
    if token is None:  # behind the last token, or a character that the tokenizer drops
        return bisect_left(range(len(encoding)), character, key=beginning)
    while token < len(encoding) and beginning(token) < character:
        token += 1
    return int(token)
