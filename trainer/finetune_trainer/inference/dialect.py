"""How a model's chat template asks, and how the model answers."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from finetune_trainer.data.conversation import Conversation, JsonObject, Message, Role, ToolCall
from finetune_trainer.data.render import Renderer
from finetune_trainer.data.template import ChatTemplate, ChatTurn
from finetune_trainer.toolcalls import CallStyle, find_style


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
