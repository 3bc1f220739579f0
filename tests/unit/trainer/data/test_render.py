"""What the model is shown, and what it learns: proved by decoding the trained tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.conversation import BadRowError, Conversation, Message, Role, ToolCall
from finetune_trainer.data.render import Document, Renderer
from finetune_trainer.data.template import load_tokenizer
from finetune_trainer.errors import TrainerError
from tests import chat_models

WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city", "parameters": {"type": "object"}},
}
PARIS, ROME = ToolCall("get_weather", {"city": "Paris"}), ToolCall("get_weather", {"city": "Rome"})


def says(role: str, content: str, *calls: ToolCall) -> Message:
    return Message(Role(role), content, calls)


CHAT = Conversation(
    (
        says("system", "Be brief."),
        says("user", "Hi"),
        says("assistant", "Hello."),
        says("user", "Bye"),
        says("assistant", "Ciao."),
    )
)
ONE_CALL = Conversation(
    (
        says("user", "Weather in Paris?"),
        says("assistant", "", PARIS),
        says("tool", "sunny"),
        says("assistant", "It is sunny."),
    ),
    (WEATHER,),
)
ASKED_TWICE = Conversation(
    (*ONE_CALL.messages, says("user", "Thanks"), says("assistant", "You are welcome.")), ONE_CALL.tools
)
TWO_CALLS = Conversation(
    (
        says("user", "Paris and Rome?"),
        says("assistant", "", PARIS, ROME),
        says("tool", "sunny"),
        says("tool", "rain"),
        says("assistant", "Sun in Paris, rain in Rome."),
    ),
    (WEATHER,),
)


def renderer_of(template: str, directory: Path) -> tuple[Renderer, PreTrainedTokenizerFast]:
    chat_models.write_tokenizer(directory, template)
    tokenizer = load_tokenizer(directory)
    return Renderer(tokenizer), tokenizer


def shown(tokenizer: Any, document: Document) -> str:
    return str(tokenizer.decode(document.tokens))


def learnt(tokenizer: Any, document: Document) -> list[str]:
    """The texts of the unbroken runs of trained tokens."""
    runs: list[list[int]] = []
    before = False
    for token, trained in zip(document.tokens.tolist(), document.trained.tolist(), strict=True):
        if trained and not before:
            runs.append([])
        if trained:
            runs[-1].append(token)
        before = trained
    return [str(tokenizer.decode(run)) for run in runs]


CALL = '{"name": "get_weather", "arguments": {"city": "%s"}}'
HERMES_PARIS, HERMES_ROME = (f"<tool_call>\n{CALL % city}\n</tool_call>" for city in ("Paris", "Rome"))

WHAT_IS_LEARNT: dict[str, tuple[str, Conversation, list[list[str]]]] = {
    "of a plain chat the assistant's words and the token that ends each turn": (
        chat_models.CHATML,
        CHAT,
        [["Hello.<|im_end|>", "Ciao.<|im_end|>"]],
    ),
    "of a tool call without a template for tools the Hermes notation": (
        chat_models.CHATML,
        ONE_CALL,
        [[f"{HERMES_PARIS}<|im_end|>", "It is sunny.<|im_end|>"]],
    ),
    "of parallel calls without a template for tools all of them": (
        chat_models.CHATML,
        TWO_CALLS,
        [[f"{HERMES_PARIS}\n{HERMES_ROME}<|im_end|>", "Sun in Paris, rain in Rome.<|im_end|>"]],
    ),
    "of a tool call with a template for tools the template's notation": (
        chat_models.CHATML_WITH_TOOLS,
        ONE_CALL,
        [[f"<tool_call>{CALL % 'Paris'}</tool_call><|im_end|>", "It is sunny.<|im_end|>"]],
    ),
    "of parallel calls with a template that takes one call a turn each call in a turn of its own": (
        chat_models.ONE_CALL_A_TURN,
        TWO_CALLS,
        [
            [
                '{"name": "get_weather", "parameters": {"city": "Paris"}}<|eot|>',
                '{"name": "get_weather", "parameters": {"city": "Rome"}}<|eot|>',
                "Sun in Paris, rain in Rome.<|eot|>",
            ]
        ],
    ),
    "of a chat whose template strips what is said the stripped words": (
        chat_models.ONE_CALL_A_TURN,
        Conversation((says("user", "Hi"), says("assistant", "  Hello. \n"))),
        [["Hello.<|eot|>"]],
    ),
    "of a template that writes the past anew one document for each past": (
        chat_models.LAST_USER_TURN,
        ASKED_TWICE,
        [["[CALLS] [%s]</s>" % (CALL % "Paris"), " It is sunny.</s>"], [" You are welcome.</s>"]],
    ),
    "of a template without a generation prompt the call and the answer": (
        chat_models.LAST_USER_TURN,
        ONE_CALL,
        [['[CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]</s>', " It is sunny.</s>"]],
    ),
    "of a template that refuses a system turn and tool turns all that the assistant said": (
        chat_models.NO_SYSTEM_TURN,
        ONE_CALL,
        [[f" {HERMES_PARIS}</s>", " It is sunny.</s>"]],
    ),
}


@pytest.mark.parametrize("case", WHAT_IS_LEARNT)
def test_only_the_assistants_words_are_learnt(case: str, tmp_path: Path) -> None:
    template, conversation, expected = WHAT_IS_LEARNT[case]
    renderer, tokenizer = renderer_of(template, tmp_path)
    assert [learnt(tokenizer, document) for document in renderer.render(conversation)] == expected


@pytest.mark.parametrize("template", [chat_models.CHATML, chat_models.CHATML_WITH_TOOLS, chat_models.ONE_CALL_A_TURN])
def test_the_model_is_shown_its_own_template_word_for_word(template: str, tmp_path: Path) -> None:
    renderer, tokenizer = renderer_of(template, tmp_path)
    [document] = renderer.render(CHAT)
    turns = [{"role": message.role.value, "content": message.content} for message in CHAT.messages]
    assert shown(tokenizer, document) == tokenizer.apply_chat_template(turns, tokenize=False, date_string="26 Jul 2024")


def test_a_document_of_a_later_turn_is_what_the_model_will_see_at_that_turn(tmp_path: Path) -> None:
    renderer, tokenizer = renderer_of(chat_models.LAST_USER_TURN, tmp_path)
    first, second = (shown(tokenizer, document) for document in renderer.render(ASKED_TWICE))
    assert first.startswith('<s>[TOOLS] [{"type": "function"')
    assert "[/TOOLS][INST] Weather in Paris?[/INST][CALLS]" in first
    assert first.endswith("It is sunny.</s>")
    assert second.startswith("<s>[INST] Weather in Paris?[/INST][CALLS]")
    assert '[/RESULTS] It is sunny.</s>[TOOLS] [{"type": "function"' in second
    assert second.endswith("[/TOOLS][INST] Thanks[/INST] You are welcome.</s>")


def test_system_words_that_a_template_shows_only_at_the_end_are_not_lost(tmp_path: Path) -> None:
    renderer, tokenizer = renderer_of(chat_models.LAST_USER_TURN, tmp_path)
    [document] = renderer.render(CHAT)
    assert shown(tokenizer, document) == "<s>[INST] Be brief.\n\nHi[/INST] Hello.</s>[INST] Bye[/INST] Ciao.</s>"


def test_tools_are_explained_in_the_system_turn_when_the_template_knows_none(tmp_path: Path) -> None:
    renderer, tokenizer = renderer_of(chat_models.CHATML, tmp_path)
    [document] = renderer.render(ONE_CALL)
    text = shown(tokenizer, document)
    assert text.startswith("<|im_start|>system\nYou are a function calling AI model.")
    assert '<tools>\n[{"type": "function", "function": {"name": "get_weather"' in text
    assert "<|im_start|>tool\n<tool_response>\nsunny\n</tool_response><|im_end|>" in text


def test_words_of_a_system_turn_that_the_template_refuses_are_said_by_the_user(tmp_path: Path) -> None:
    renderer, tokenizer = renderer_of(chat_models.NO_SYSTEM_TURN, tmp_path)
    [document] = renderer.render(CHAT)
    assert shown(tokenizer, document).startswith("<s>[INST] Be brief.\n\nHi [/INST] Hello.</s>")


def test_answers_of_parallel_calls_share_a_turn_where_roles_must_alternate(tmp_path: Path) -> None:
    renderer, tokenizer = renderer_of(chat_models.NO_SYSTEM_TURN, tmp_path)
    [document] = renderer.render(TWO_CALLS)
    answers = "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrain\n</tool_response>"
    assert f"[INST] {answers} [/INST]" in shown(tokenizer, document)


def test_of_parallel_calls_that_end_a_conversation_the_first_remains_where_one_is_taken(tmp_path: Path) -> None:
    renderer, tokenizer = renderer_of(chat_models.ONE_CALL_A_TURN, tmp_path)
    conversation = Conversation((says("user", "Paris and Rome?"), says("assistant", "", PARIS, ROME)), (WEATHER,))
    [document] = renderer.render(conversation)
    assert learnt(tokenizer, document) == ['{"name": "get_weather", "parameters": {"city": "Paris"}}<|eot|>']


def test_the_date_of_preparation_does_not_change_the_data(tmp_path: Path) -> None:
    renderer, tokenizer = renderer_of(chat_models.ONE_CALL_A_TURN, tmp_path)
    [document] = renderer.render(CHAT)
    assert "Today: 26 Jul 2024" in shown(tokenizer, document)


REFUSED: dict[str, tuple[str, Conversation, str]] = {
    "a row for whose calls the template needs a field that no call has": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for call in message.tool_calls or [] %}"
        "{{ call.function.name }}{{ call.function.arguments | tojson }}{% if call.function.name == 'get_weather' %}"
        "{{ call.confidence.level }}{% endif %}{% endfor %}{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if tools %}{{ tools | tojson }}<|im_end|>{% endif %}",
        ONE_CALL,
        "turn 2: the model's chat template needs a field that a turn does not have: 'dict object' has no attribute "
        "'confidence'; turns have role, content, tool_calls, tool_call_id and name: change the template",
    ),
    "a row with half of a character": (
        chat_models.CHATML,
        Conversation((says("user", "Hi"), says("assistant", "Hello \ud83d"))),
        "contains half of a character ('\\ud83d')",
    ),
    "a row with a token in its words that the template marks turns with": (
        chat_models.CHATML,
        Conversation((says("user", "ignore<|im_end|>"), says("assistant", "No."))),
        "turn 1: contains '<|im_end|>', with which this model's template marks turns",
    ),
    "a row with such a token in the arguments of a call": (
        chat_models.CHATML,
        Conversation((says("user", "Hi"), says("assistant", "", ToolCall("say", {"words": ["<|im_end|>"]})))),
        "turn 2: contains '<|im_end|>', with which this model's template marks turns",
    ),
    "a row that the template raises on, with the template's words": (
        chat_models.NO_SYSTEM_TURN,
        Conversation((says("user", "Hi"), says("user", "Hello?"), says("assistant", "Yes."))),
        "turn 2: the model's chat template refuses it: Conversation roles must alternate",
    ),
    "parallel calls with an answer missing where one call is taken": (
        chat_models.ONE_CALL_A_TURN,
        Conversation(
            (says("user", "Both?"), says("assistant", "", PARIS, ROME), says("tool", "sun"), says("assistant", "Sun.")),
            (WEATHER,),
        ),
        "2 parallel calls have 1 answers",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_that_cannot_be_said_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    template, conversation, reason = REFUSED[case]
    renderer, _ = renderer_of(template, tmp_path)
    with pytest.raises(BadRowError) as refusal:
        renderer.render(conversation)
    assert reason in str(refusal.value)


def test_special_tokens_that_the_template_does_not_use_may_be_said(tmp_path: Path) -> None:
    renderer, tokenizer = renderer_of(chat_models.CHATML, tmp_path)
    [document] = renderer.render(Conversation((says("user", "What is <|eot|>?"), says("assistant", "A token."))))
    assert learnt(tokenizer, document) == ["A token.<|im_end|>"]


def test_a_template_without_a_token_that_ends_turns_is_refused_with_advice(tmp_path: Path) -> None:
    plain = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    with pytest.raises(TrainerError) as error:
        renderer_of(plain, tmp_path)
    assert error.value.reason is Reason.MODEL_UNSUPPORTED
    assert "ends the assistant's turn with 'user: a\\nassistant: b'" in error.value.message
    assert "let the template write eos_token behind what the assistant says" in error.value.message


def test_the_token_that_ends_turns_is_known(tmp_path: Path) -> None:
    assert renderer_of(chat_models.CHATML, tmp_path / "chatml")[0].end_of_turn == "<|im_end|>"
    assert renderer_of(chat_models.LAST_USER_TURN, tmp_path / "last")[0].end_of_turn == "</s>"


def test_line_breaks_and_spaces_between_turns_are_not_learnt_but_those_within_are(tmp_path: Path) -> None:
    renderer, tokenizer = renderer_of(chat_models.CHATML, tmp_path)
    conversation = Conversation(
        (says("user", "List"), says("assistant", "- one\n- two\n"), says("user", "?"), says("assistant", " ok"))
    )
    [document] = renderer.render(conversation)
    assert learnt(tokenizer, document) == ["- one\n- two\n<|im_end|>", " ok<|im_end|>"]


def test_a_tokenizer_that_puts_a_space_behind_special_tokens_gets_whole_texts(tmp_path: Path) -> None:
    chat_models.write_tokenizer(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    # As Llama 2 and the first Mistral models have it: what is tokenised alone begins with a space of its own.
    document["normalizer"] = {"type": "Prepend", "prepend": "_"}
    document["added_tokens"] = [token | {"normalized": True} for token in document["added_tokens"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = load_tokenizer(tmp_path)
    renderer = Renderer(tokenizer)
    [marked] = renderer.mark(CHAT)
    whole = tokenizer.backend_tokenizer.encode(marked.text, add_special_tokens=False).ids
    assert renderer.tokenise(marked).tokens.tolist() == whole


WEIGHED = Conversation(
    (
        Message(Role.USER, "Hi"),
        Message(Role.ASSISTANT, "Hello.", is_trained=False),
        Message(Role.USER, "Weather?"),
        Message(Role.ASSISTANT, "", TWO_CALLS.messages[1].tool_calls, is_trained=False),
        *TWO_CALLS.messages[2:4],
        Message(Role.ASSISTANT, "Sun in Paris, rain in Rome."),
    ),
    TWO_CALLS.tools,
)


@pytest.mark.parametrize("template", [chat_models.CHATML, chat_models.CHATML_WITH_TOOLS, chat_models.ONE_CALL_A_TURN])
def test_a_turn_of_weight_0_is_read_and_not_learnt(template: str, tmp_path: Path) -> None:
    renderer, tokenizer = renderer_of(template, tmp_path)
    [document] = renderer.render(WEIGHED)
    assert learnt(tokenizer, document) == [f"Sun in Paris, rain in Rome.{renderer.end_of_turn}"]
    assert "Hello." in shown(tokenizer, document)
    turns, tools = renderer.template.spell(WEIGHED)
    assert renderer._mark_turn_by_turn(turns, tools) == renderer.mark(WEIGHED)
