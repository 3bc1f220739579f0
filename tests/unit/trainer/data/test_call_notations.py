"""Calls are written as the model's family writes them, whatever the format of their rows, and can be read back."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.data.conversation import Conversation, Message, Role, ToolCall
from finetune_trainer.data.formats import parse_row
from finetune_trainer.data.render import Renderer
from finetune_trainer.data.template import load_tokenizer
from finetune_trainer.toolcalls import ParsedTurn, parse_turn
from tests import chat_models
from tests.call_templates import FAMILIES

WEATHER = {"name": "get_weather", "description": "Weather of a city", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": WEATHER}
PARIS = '{"city": "Paris", "days": 2}'


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Renderer]:
    made = {}
    for family, (template, special_tokens, _) in FAMILIES.items():
        directory = tmp_path_factory.mktemp("tokenizer")
        chat_models.write_tokenizer(directory, template, special_tokens)
        made[family] = Renderer(load_tokenizer(directory))
    return made


def written(renderer: Renderer, conversation: Conversation) -> list[str]:
    """What the model learns to write, turn by turn."""
    return [marked.text[start:end] for marked in renderer.mark(conversation) for start, end in marked.spans]


SPELLINGS: dict[DatasetFormat, dict[str, Any]] = {
    DatasetFormat.OPENAI: {
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": PARIS}}]},
            {"role": "tool", "content": "sunny"},
            {"role": "assistant", "content": "It is sunny."},
        ],
    },
    DatasetFormat.HERMES: {
        "conversations": [
            {"from": "system", "value": f"<tools>{json.dumps([TOOL])}</tools>"},
            {"from": "human", "value": "Weather?"},
            {"from": "gpt", "value": f'<tool_call>{{"name": "get_weather", "arguments": {PARIS}}}</tool_call>'},
            {"from": "tool", "value": "<tool_response>sunny</tool_response>"},
            {"from": "gpt", "value": "It is sunny."},
        ]
    },
    DatasetFormat.GLAIVE: {
        "system": f"SYSTEM: Use them if required -\n{json.dumps(WEATHER)}",
        "chat": "USER: Weather?\n\n\nASSISTANT: <functioncall> "
        f'{{"name": "get_weather", "arguments": \'{PARIS}\'}} <|endoftext|>\n\n\n'
        "FUNCTION RESPONSE: sunny\n\n\nASSISTANT: It is sunny. <|endoftext|>",
    },
    DatasetFormat.SHAREGPT: {
        "tools": json.dumps([WEATHER]),
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": f'{{"name": "get_weather", "arguments": {PARIS}}}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "It is sunny."},
        ],
    },
}

CALL = '{"name": "get_weather", "%s": {"city": "Paris", "days": 2}'
HERMES_CALL = f"<tool_call>\n{CALL % 'arguments'}}}\n</tool_call><|im_end|>"
AS_WRITTEN = {
    "Llama 3.1": [CALL % "parameters" + "}<|eot_id|>", "It is sunny.<|eot_id|>"],
    "Qwen 2.5": [HERMES_CALL, "It is sunny.<|im_end|>"],
    "Mistral": [f'[TOOL_CALLS] [{CALL % "arguments"}, "id": "call00001"}}]</s>', " It is sunny.</s>"],
    "Hermes": [HERMES_CALL, "It is sunny.<|im_end|>"],
}


@pytest.mark.parametrize("dataset_format", SPELLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_is_written_as_its_family_writes_it_whatever_the_format_of_its_row(
    family: str, dataset_format: DatasetFormat, renderers: dict[str, Renderer]
) -> None:
    conversation = parse_row(SPELLINGS[dataset_format], dataset_format)
    assert written(renderers[family], conversation) == AS_WRITTEN[family]


# Words that a notation itself is made of are another matter: no parser could tell them apart.
WORDS = st.text(st.sampled_from("ab \"'\\{}[]:;,\n\té→😀"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.builds(
    ToolCall,
    st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_.-]{0,12}", fullmatch=True),
    st.dictionaries(WORDS, VALUES, max_size=4),
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25)
@given(calls=st.lists(CALLS, min_size=1, max_size=3))
def test_what_is_written_of_calls_is_read_back_as_the_same_calls(
    family: str, calls: list[ToolCall], renderers: dict[str, Renderer]
) -> None:
    renderer, style = renderers[family], FAMILIES[family][2]
    answers = [Message(Role.TOOL, "done") for _ in calls]
    conversation = Conversation(
        (
            Message(Role.USER, "Go"),
            Message(Role.ASSISTANT, "", tuple(calls)),
            *answers,
            Message(Role.ASSISTANT, "Done."),
        )
    )
    *calling, last = written(renderer, conversation)
    parsed = [parse_turn(turn, style) for turn in calling]
    assert all(turn.text == "" and not turn.malformed for turn in parsed)
    # In turns of their own where the family takes one call a turn.
    assert [call for turn in parsed for call in turn.calls] == calls
    assert parse_turn(last, style) == ParsedTurn("Done.")


CONTENTS = st.text(st.sampled_from("ab {}\n\t<>é😀"), min_size=1, max_size=12).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages = [Message(Role.SYSTEM, draw(CONTENTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        messages.append(Message(Role.USER, draw(CONTENTS)))
        for _ in range(draw(st.integers(0, 2))):
            calls = tuple(draw(st.lists(CALLS, min_size=1, max_size=2)))
            messages.append(Message(Role.ASSISTANT, "", calls))
            messages += [Message(Role.TOOL, draw(CONTENTS)) for _ in calls]
        messages.append(Message(Role.ASSISTANT, draw(CONTENTS)))
    return Conversation(tuple(messages), (TOOL,) if draw(st.booleans()) else ())


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20)
@given(conversation=conversations())
def test_a_conversation_rendered_at_once_is_marked_as_when_it_is_rendered_turn_by_turn(
    family: str, conversation: Conversation, renderers: dict[str, Renderer]
) -> None:
    renderer = renderers[family]
    turns, tools = renderer.template.spell(conversation)
    slowly = renderer._mark_turn_by_turn(turns, tools)
    assert renderer.mark(conversation) == slowly
    at_once = renderer._mark_at_once(turns, tools)
    assert at_once == (None if family == "Mistral" else slowly)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20)
@given(conversation=conversations())
def test_tokens_of_a_first_turn_that_were_kept_are_those_of_the_whole_text(
    family: str, conversation: Conversation, renderers: dict[str, Renderer]
) -> None:
    renderer = renderers[family]
    for marked in renderer.mark(conversation):
        encoding = renderer._backend.encode(marked.text, add_special_tokens=False)
        within = [any(start <= first < end for start, end in marked.spans) for first, _ in encoding.offsets]
        for _ in range(2):  # made anew, and kept
            document = renderer.tokenise(marked)
            assert document.tokens.tolist() == encoding.ids
            assert document.trained.tolist() == within
