"""Questions for a model: each turn of the assistant in the held-out rows, and what it should call there."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from finetune_trainer.data.conversation import Conversation, JsonObject, Message, Role, ToolCall
from finetune_trainer.data.heldout import HeldOutRow
from finetune_trainer.data.render import Document, Renderer
from finetune_trainer.data.template import ChatTemplate, ChatTurn
from finetune_trainer.toolcalls import CallStyle, find_style, parse_turn


@dataclass(frozen=True)
class Turn:
    """One turn to be written: the tokens before it, and what it called in the data."""

    row: int  # index of the held-out row
    place: str  # file and row, and the number of the turn, for people
    prompt: npt.NDArray[np.int32]  # [num_tokens]
    expected: tuple[ToolCall, ...]
    expected_text: str
    functions: frozenset[str]  # names of the tools of the row


class Dialect:
    """How a model's template asks, and how the model answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.renderer = Renderer(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        self.style = find_call_style(self.renderer.template)

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the tokens of a rendered text; the template has written the special ones."""
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def decode(self, tokens: tuple[int, ...]) -> str:
        """Return the text of written tokens, special ones included: some of them mark calls."""
        text: str = self._backend.decode(list(tokens), skip_special_tokens=False)
        return text

    def render(self, row: HeldOutRow) -> list[Document]:
        """Return the documents of a row, as they are trained on. Raises BadRowError."""
        return self.renderer.render(row.conversation)

    def prompt(self, turns: list[ChatTurn], tools: list[JsonObject] | None) -> npt.NDArray[np.int32]:
        """Return the tokens that stand before the next turn of the assistant. Raises BadRowError."""
        return self.encode(self.renderer.template.text(turns, tools, add_generation_prompt=True))


_QUESTION = Message(Role.USER, "What is the weather?")
_CALLS = (ToolCall("get_weather", {"city": "Paris"}),)
_TOOL: JsonObject = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def find_call_style(template: ChatTemplate) -> CallStyle | None:
    """Return the notation in which a template writes calls, found by letting it write one, or None."""
    called = Message(Role.ASSISTANT, "", _CALLS)
    turns, tools = template.spell(Conversation((_QUESTION, called), (_TOOL,)))
    prompt = template.text(turns[:-1], tools, add_generation_prompt=True)
    whole = template.text(turns, tools, add_generation_prompt=False)
    return find_style(whole.removeprefix(prompt), _CALLS)


def find_stop_tokens(dialect: Dialect, tokenizer: PreTrainedTokenizerFast, model_directory: Path) -> frozenset[int]:
    """Return the tokens that end a turn: those that the model's authors name, and those that its template writes."""
    tokens: set[int] = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    for name in ("generation_config.json", "config.json"):
        path = model_directory / name
        ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
        tokens |= set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    for answer in (Message(Role.ASSISTANT, "It is sunny."), Message(Role.ASSISTANT, "", _CALLS)):
        document = dialect.renderer.render(Conversation((_QUESTION, answer), (_TOOL,)))[-1]
        last = int(document.tokens[document.trained][-1])
        if last in tokenizer.added_tokens_decoder:
            tokens.add(last)
    return frozenset(tokens)


def make_turns(rows: Sequence[HeldOutRow], dialect: Dialect, max_turns: int) -> list[Turn]:
    """Return the turns to be written; where there are more than `max_turns`, those that a digest of their place draws.

    Raises:
        BadRowError: the template refuses a row that it took when the data was prepared.
    """
    places = [
        (index, number)
        for index, row in enumerate(rows)
        for number, turn in enumerate(dialect.renderer.template.spell(row.conversation)[0])
        if turn["role"] == Role.ASSISTANT
    ]
    if len(places) > max_turns:
        drawn = sorted(places, key=lambda place: hashlib.sha256(f"{place[0]}/{place[1]}".encode()).digest())
        places = sorted(drawn[:max_turns])
    return [_make_turn(index, number, rows[index], dialect) for index, number in places]


def _make_turn(index: int, number: int, row: HeldOutRow, dialect: Dialect) -> Turn:
    turns, tools = dialect.renderer.template.spell(row.conversation)
    calls, text = _what_was_said(turns[number])
    return Turn(
        row=index,
        place=f"{row.place}, turn {number + 1}",
        prompt=dialect.prompt(turns[:number], tools),
        expected=calls,
        expected_text=text,
        functions=frozenset(tool["function"]["name"] for tool in row.conversation.tools),
    )


def _what_was_said(turn: ChatTurn) -> tuple[tuple[ToolCall, ...], str]:
    """Return the calls and the words of a spelt turn; a template without tools has its calls as text."""
    if "tool_calls" in turn:
        calls = tuple(ToolCall(call["function"]["name"], call["function"]["arguments"]) for call in turn["tool_calls"])
        return calls, turn["content"]
    parsed = parse_turn(turn["content"], CallStyle.HERMES)
    return parsed.calls, parsed.text
