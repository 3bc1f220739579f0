"""The model's own chat template, and how a conversation is spelt so that it takes it.

Templates differ: some know tools, some know them but take one call a turn, some know neither tools nor a system turn.
What a template can do is found out by trying it, not by the model's name.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerFast

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.conversation import BadRowError, Conversation, Defect, JsonObject, Message, Role, ToolCall
from finetune_trainer.errors import TrainerError

TOKENIZER_FILE = "tokenizer.json"
# All that may belong to a tokenizer and its templates.
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "vocab.json",
    "merges.txt",
)
# Llama 3.1 and later write a date into the system turn: today's, unless the caller says another. Data that was
# prepared on two days has to be the same, so it is the date that the template of Llama 3.1 itself falls back to.
DATE = "26 Jul 2024"

HERMES_SYSTEM_PROMPT = """\
You are a function calling AI model. You are provided with function signatures within <tools> </tools> XML tags. \
You may call one or more functions to assist with the user query. Don't make assumptions about what values to plug \
into functions.
<tools>
{tools}
</tools>
For each function call return a json object with function name and arguments within <tool_call> </tool_call> tags \
with the following schema:
<tool_call>
{{"name": <function-name>, "arguments": <args-dict>}}
</tool_call>"""

ChatTurn = dict[str, Any]


def load_tokenizer(model_directory: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model, exactly as its tokenizer.json says.

    NB: `AutoTokenizer` imports torch, which takes four seconds and half a gigabyte; this class does not.

    Raises:
        TrainerError: MODEL_UNSUPPORTED without a tokenizer.json or a chat template, MODEL_UNAVAILABLE when damaged.
    """
    if not (model_directory / TOKENIZER_FILE).is_file():
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED, f"{model_directory}: has no {TOKENIZER_FILE}; a model needs a fast tokenizer"
        )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(model_directory), local_files_only=True)
    # tokenizers raises bare Exception for a file that it cannot read.
    except Exception as error:
        raise TrainerError(
            Reason.MODEL_UNAVAILABLE, f"{model_directory}: the tokenizer cannot be read: {error}"
        ) from error
    if not tokenizer.chat_template:
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"{model_directory}: the tokenizer has no chat template, so it is unknown how this model reads a "
            "conversation. Take the instruction-tuned variant of the model (often named ...-Instruct)",
        )
    # NB: some tokenizer.json files cut or fill every text to a fixed length.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


@dataclass(frozen=True)
class TemplateStyle:
    """What a chat template can do."""

    takes_system: bool
    takes_tools: bool  # tools, calls and answers as structured data
    takes_parallel_calls: bool
    takes_tool_turns: bool  # a turn of role `tool`, as text


class ChatTemplate:
    """Writes conversations as the model was taught to read them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.style = _probe(self)

    @property
    def description(self) -> str:
        """How it writes tools, and which template it is."""
        markup = json.dumps(self._tokenizer.chat_template, sort_keys=True).encode()
        tools = "tools in its own notation" if self.style.takes_tools else "tools in the Hermes notation"
        return f"{tools}, sha256:{hashlib.sha256(markup).hexdigest()[:12]}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of what it cannot do."""
        notes = []
        if not self.style.takes_tools:
            notes.append("the model's chat template takes no tools: they are written in the Hermes notation")
        elif not self.style.takes_parallel_calls:
            notes.append(
                "the model's chat template takes one tool call a turn: parallel calls are made one after another"
            )
        if not self.style.takes_system:
            notes.append(
                "the model's chat template takes no system turn: its words are put before the first user turn's"
            )
        return tuple(notes)

    def text(self, turns: list[ChatTurn], tools: list[JsonObject] | None, add_generation_prompt: bool) -> str:
        """Render turns. Raises BadRowError when the template refuses them."""
        try:
            return self._render(turns, tools, add_generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise BadRowError(self._refusal(turns, tools, error), Defect.REFUSED_BY_TEMPLATE) from error

    def _refusal(self, turns: list[ChatTurn], tools: list[JsonObject] | None, error: Exception) -> str:
        where = f"turn {self._refused_turn(turns, tools)}: "
        if isinstance(error, jinja2.UndefinedError):
            return (
                f"{where}the model's chat template needs a field that a turn does not have: {error}; turns have role, "
                "content, tool_calls, tool_call_id and name: change the template in a copy of the model's directory"
            )
        return f"{where}the model's chat template refuses it: {error}: change the row as these words say"

    def _refused_turn(self, turns: list[ChatTurn], tools: list[JsonObject] | None) -> int:
        """Return the number of the first turn with which the template fails."""
        for number in range(1, len(turns)):
            try:
                self._render(turns[:number], tools, add_generation_prompt=False)
            except Exception:  # noqa: BLE001 - whatever it was, it is this turn
                return number
        return len(turns)

    def _render(self, turns: list[ChatTurn], tools: list[JsonObject] | None, add_generation_prompt: bool) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            turns, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False, date_string=DATE
        )
        return rendered

    def spell(self, conversation: Conversation) -> tuple[list[ChatTurn], list[JsonObject] | None]:
        """Return the turns and the tools to render, in the notation that this template takes.

        Raises:
            BadRowError: the conversation cannot be said in it.
        """
        messages = conversation.messages
        has_tools = bool(conversation.tools) or any(message.tool_calls for message in messages)
        if not has_tools or not self.style.takes_tools:
            return self._as_text(messages, conversation.tools), None
        if not self.style.takes_parallel_calls:
            messages = one_call_a_turn(messages)
        if not self.style.takes_system:
            messages = _system_into_user(messages)
        return _as_structure(messages), list(conversation.tools) or None

    def _as_text(self, messages: tuple[Message, ...], tools: tuple[JsonObject, ...]) -> list[ChatTurn]:
        """Spell tools in the Hermes notation, for a template that knows nothing of them."""
        if tools:
            prompt = HERMES_SYSTEM_PROMPT.format(tools=json.dumps(tools, ensure_ascii=False))
            if messages[0].role is Role.SYSTEM:
                prompt, messages = f"{messages[0].content}\n\n{prompt}", messages[1:]
            messages = (Message(Role.SYSTEM, prompt), *messages)
        if not self.style.takes_system:
            messages = _system_into_user(messages)
        turns: list[ChatTurn] = []
        for number, message in enumerate(messages):
            content = message.content
            if message.role is Role.TOOL:
                content = f"<tool_response>\n{content}\n</tool_response>"
                if messages[number - 1].role is Role.TOOL:
                    turns[-1]["content"] += f"\n{content}"
                    continue
            calls = [
                f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': call.arguments}, ensure_ascii=False)}\n"
                "</tool_call>"
                for call in message.tool_calls
            ]
            role = Role.USER if message.role is Role.TOOL and not self.style.takes_tool_turns else message.role
            text = "\n".join([content, *calls] if content else calls or [""])
            turns.append(_turn(message, role, text))
        return turns


def one_call_a_turn(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Make parallel calls one after another, each followed by its answer, for a template that takes only one.

    Calls that end a conversation have no answers yet; a model that makes one call at a time would have made the first
    of them, so the conversation ends there.

    Raises:
        BadRowError: there are fewer or more answers than calls.
    """
    turns: list[Message] = []
    position = 0
    while position < len(messages):
        message = messages[position]
        position += 1
        if len(message.tool_calls) < 2:
            turns.append(message)
            continue
        answers = []
        while position < len(messages) and messages[position].role is Role.TOOL:
            answers.append(messages[position])
            position += 1
        if position == len(messages) and not answers:
            turns.append(replace(message, tool_calls=message.tool_calls[:1]))
            break
        if len(answers) != len(message.tool_calls):
            raise BadRowError(
                f"turn {position - len(answers)}: {len(message.tool_calls)} parallel calls have {len(answers)} "
                "answers, and the model's chat template takes one call a turn"
            )
        for number, (call, answer) in enumerate(zip(message.tool_calls, answers, strict=True)):
            turns += [replace(message, content="" if number else message.content, tool_calls=(call,)), answer]
    return tuple(turns)


def _system_into_user(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if messages[0].role is not Role.SYSTEM:
        return messages
    system, user, *rest = messages
    if user.role is not Role.USER:
        raise BadRowError("the model's chat template takes no system turn, and there is no user turn to put it into")
    return (replace(user, content=f"{system.content}\n\n{user.content}"), *rest)


def _turn(message: Message, role: Role, content: str) -> ChatTurn:
    """Return a turn for a template; `weight`, which no template reads, tells the renderer what is not trained."""
    turn: ChatTurn = {"role": role.value, "content": content}
    return turn if message.is_trained else turn | {"weight": 0}


def _as_structure(messages: tuple[Message, ...]) -> list[ChatTurn]:
    turns: list[ChatTurn] = []
    unanswered: list[tuple[str, str]] = []
    num_calls = 0
    for message in messages:
        turn = _turn(message, message.role, message.content)
        if message.tool_calls:
            unanswered, calls = [], []
            for call in message.tool_calls:
                num_calls += 1
                # Mistral's templates take nothing but nine letters and digits.
                call_id = f"call{num_calls:05d}"
                unanswered.append((call_id, call.name))
                function = {"name": call.name, "arguments": call.arguments}
                calls.append({"type": "function", "id": call_id, "function": function})
            turn["tool_calls"] = calls
        elif message.role is Role.TOOL and unanswered:
            turn["tool_call_id"], turn["name"] = unanswered.pop(0)
        turns.append(turn)
    return turns


# --- what a template can do -------------------------------------------------------------------------------------------

_USER = Message(Role.USER, "user-words")
_SAID = Message(Role.ASSISTANT, "assistant-words")
_PROBE_TOOL: JsonObject = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "described-tool",
        "parameters": {"type": "object", "properties": {"probe_field": {"type": "string"}}, "required": []},
    },
}
_CALLS = (ToolCall("probe_first", {"probe_field": "value-1"}), ToolCall("probe_second", {"probe_field": "value-2"}))
_ANSWERS = (Message(Role.TOOL, "answer-1"), Message(Role.TOOL, "answer-2"))


def _probe(template: ChatTemplate) -> TemplateStyle:
    def shows(messages: list[Message], tools: list[JsonObject] | None, words: list[str]) -> bool:
        try:
            text = template.text(_as_structure(tuple(messages)), tools, add_generation_prompt=False)
        except BadRowError:
            return False
        return all(word in text for word in words)

    tools = [_PROBE_TOOL]
    one_call = [_USER, Message(Role.ASSISTANT, "", _CALLS[:1]), _ANSWERS[0], _SAID]
    two_calls = [_USER, Message(Role.ASSISTANT, "", _CALLS), *_ANSWERS, _SAID]
    if not shows([_USER, _SAID], None, ["user-words", "assistant-words"]):
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"the model's chat template cannot write a question and its answer{_words_of_refusal(template)}. Mend "
            "chat_template in a copy of the model's directory (spec.model.path), or take another model",
        )
    return TemplateStyle(
        takes_system=shows([Message(Role.SYSTEM, "system-words"), _USER, _SAID], None, ["system-words"]),
        takes_tools=shows([_USER, _SAID], tools, ["probe_tool", "described-tool", "probe_field"])
        and shows(one_call, tools, ["probe_first", "value-1", "answer-1", "assistant-words"]),
        takes_parallel_calls=shows(two_calls, tools, ["probe_first", "probe_second", "value-2", "answer-2"]),
        takes_tool_turns=shows([_USER, _SAID, _ANSWERS[0], _SAID], None, ["answer-1"]),
    )


def _words_of_refusal(template: ChatTemplate) -> str:
    try:
        template.text(_as_structure((_USER, _SAID)), None, add_generation_prompt=False)
    except BadRowError as error:
        return f": {error}"
    return ""


# Conversations of every kind, by which two ways of reading a template are compared.
_TALK = (_USER, _SAID, Message(Role.USER, " 2\n"), Message(Role.ASSISTANT, "\n line\n\nline "), _USER, _SAID)
_CALL = (Message(Role.ASSISTANT, "", _CALLS[:1]), _ANSWERS[0])
_THOUGHT = (_USER, Message(Role.ASSISTANT, "<think>\nthought\n</think>\n\nwords"), *_TALK)
PROBES: tuple[Conversation, ...] = tuple(
    Conversation(system + turns, tools)
    for system in ((), (Message(Role.SYSTEM, "system-words"),))
    for tools in ((), (_PROBE_TOOL,))
    for turns in (
        _TALK,
        _THOUGHT,
        (*_TALK, _USER, *_CALL, _SAID, *_TALK),
        (*_TALK, _USER, *_CALL, *_CALL, _SAID),
        (_USER, Message(Role.ASSISTANT, "words", _CALLS[:1]), _ANSWERS[0], _SAID, _USER, *_CALL[:1]),
        (_USER, Message(Role.ASSISTANT, "", _CALLS), *_ANSWERS, _SAID, *_TALK),
    )
)
