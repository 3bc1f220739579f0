"""Calls in the notation of each family, and what of the broken ones a patient reader still understands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data.conversation import ToolCall
from finetune_trainer.toolcalls import CallStyle, ParsedTurn, find_style, parse_turn

WEATHER = ToolCall("get_weather", {"city": "Paris", "days": 2, "celsius": True})
TIME = ToolCall("get_time", {"zone": None, "tags": ["a", {"b": 1.5}]})
WEATHER_JSON = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 2, "celsius": true}}'
TIME_JSON = '{"name": "get_time", "arguments": {"zone": null, "tags": ["a", {"b": 1.5}]}}'
WEATHER_LLAMA = WEATHER_JSON.replace("arguments", "parameters")

STRICT: dict[str, tuple[CallStyle, str, ParsedTurn]] = {
    "hermes: one call": (
        CallStyle.HERMES,
        f"<tool_call>\n{WEATHER_JSON}\n</tool_call><|im_end|>\n",
        ParsedTurn("", (WEATHER,)),
    ),
    "hermes: words, then two calls": (
        CallStyle.HERMES,
        f"Let me see.\n<tool_call>\n{WEATHER_JSON}\n</tool_call>\n<tool_call>\n{TIME_JSON}\n</tool_call>",
        ParsedTurn("Let me see.", (WEATHER, TIME)),
    ),
    "hermes: an answer": (CallStyle.HERMES, "It is {sunny}.<|im_end|>", ParsedTurn("It is {sunny}.")),
    "hermes: a call that is not closed": (
        CallStyle.HERMES,
        f"<tool_call>{WEATHER_JSON}",
        ParsedTurn("", (), (WEATHER_JSON,)),
    ),
    "hermes: one good and one broken": (
        CallStyle.HERMES,
        f"<tool_call>{WEATHER_JSON}</tool_call><tool_call>{{'name': 1}}</tool_call>",
        ParsedTurn("", (WEATHER,), ("{'name': 1}",)),
    ),
    "hermes: arguments as a text": (
        CallStyle.HERMES,
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
        ParsedTurn("", (), ('{"name": "f", "arguments": "{}"}',)),
    ),
    "hermes: a number that JSON does not have": (
        CallStyle.HERMES,
        '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
        ParsedTurn("", (), ('{"name": "f", "arguments": {"x": NaN}}',)),
    ),
    "llama: one call": (CallStyle.LLAMA, f"{WEATHER_LLAMA}<|eot_id|>", ParsedTurn("", (WEATHER,))),
    "llama: behind the python tag": (
        CallStyle.LLAMA,
        f"<|python_tag|>{WEATHER_LLAMA}<|eom_id|>",
        ParsedTurn("", (WEATHER,)),
    ),
    "llama: two calls": (CallStyle.LLAMA, f"{WEATHER_LLAMA}; {TIME_JSON}", ParsedTurn("", (WEATHER, TIME))),
    "llama: words behind a call": (
        CallStyle.LLAMA,
        f"{WEATHER_LLAMA} Here you are.",
        ParsedTurn("", (), (f"{WEATHER_LLAMA} Here you are.",)),
    ),
    "llama: a call that breaks off": (CallStyle.LLAMA, WEATHER_LLAMA[:-1], ParsedTurn("", (), (WEATHER_LLAMA[:-1],))),
    "llama: an answer": (CallStyle.LLAMA, "It is sunny.<|eot_id|>", ParsedTurn("It is sunny.")),
    "llama: an answer that is JSON": (CallStyle.LLAMA, '{"answer": 42}', ParsedTurn('{"answer": 42}')),
    "mistral: two calls with ids": (
        CallStyle.MISTRAL,
        f'[TOOL_CALLS] [{WEATHER_JSON[:-1]}, "id": "call00001"}}, {TIME_JSON}]</s>',
        ParsedTurn("", (WEATHER, TIME)),
    ),
    "mistral: named calls of later tokenizers": (
        CallStyle.MISTRAL,
        'One moment.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 2, "celsius": true}'
        '[TOOL_CALLS]get_time[CALL_ID]abc[ARGS]{"zone": null, "tags": ["a", {"b": 1.5}]}</s>',
        ParsedTurn("One moment.", (WEATHER, TIME)),
    ),
    "mistral: one of two is broken": (
        CallStyle.MISTRAL,
        f"[TOOL_CALLS] [{WEATHER_JSON}, {{}}]",
        ParsedTurn("", (), (f"[{WEATHER_JSON}, {{}}]",)),
    ),
    "mistral: an answer in brackets": (CallStyle.MISTRAL, "[1] It is sunny.", ParsedTurn("[1] It is sunny.")),
    "nothing at all": (CallStyle.HERMES, "", ParsedTurn("")),
}


@pytest.mark.parametrize(("style", "text", "expected"), STRICT.values(), ids=STRICT.keys())
def test_a_turn_is_read_as_its_family_writes_it(style: CallStyle, text: str, expected: ParsedTurn) -> None:
    assert parse_turn(text, style) == expected


LENIENT: dict[str, tuple[str, tuple[ToolCall, ...]]] = {
    "a call that is not closed": (f"<tool_call>{WEATHER_JSON}", (WEATHER,)),
    "a brace is missing at the end": (f"<tool_call>{WEATHER_JSON[:-1]}</tool_call>", (WEATHER,)),
    "Python instead of JSON": (
        "<tool_call>{'name': 'get_weather', 'arguments': {'city': 'Paris', 'days': 2, 'celsius': True}}</tool_call>",
        (WEATHER,),
    ),
    "Python with JSON's constants": (
        "{'name': 'get_weather', 'arguments': {'city': 'Paris', 'days': 2, 'celsius': true}}",
        (WEATHER,),
    ),
    "a block of code between words": (f"Sure:\n```json\n{WEATHER_JSON}\n```\nDone.", (WEATHER,)),
    "another family's notation": (f"[TOOL_CALLS] [{WEATHER_JSON}, {TIME_JSON}]", (WEATHER, TIME)),
    "another family's named notation": (
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}',
        (ToolCall("get_weather", {"city": "Oslo"}),),
    ),
    "parameters for arguments": (f"<tool_call>{WEATHER_LLAMA}</tool_call>", (WEATHER,)),
    "arguments as a text": (
        '<functioncall> {"name": "f", "arguments": "{\\"a\\": 1}"}',
        (ToolCall("f", {"a": 1}),),
    ),
    "glaive's single quotes": (
        """<functioncall> {"name": "f", "arguments": '{"a": "it is"}'}""",
        (ToolCall("f", {"a": "it is"}),),
    ),
    "OpenAI's envelope": (
        f'{{"tool_calls": [{{"type": "function", "function": {WEATHER_JSON}}}, {{"function": {TIME_JSON}}}]}}',
        (WEATHER, TIME),
    ),
    "a call in Python": (
        '[get_weather(city="Paris", days=2, celsius=True), get_time(zone=None, tags=["a", {"b": 1.5}])]',
        (WEATHER, TIME),
    ),
    "a built-in tool of Llama": (
        '<|python_tag|>brave_search.call(query="weather")<|eom_id|>',
        (ToolCall("brave_search", {"query": "weather"}),),
    ),
    "an answer with braces": ("Use {name} and {'a': 1}.", ()),
    "an answer that looks like Python": ("print('hello')", ()),
    "an answer": ("It is sunny.", ()),
}


@pytest.mark.parametrize(("text", "calls"), LENIENT.values(), ids=LENIENT.keys())
def test_read_leniently_a_call_is_found_however_it_is_written(text: str, calls: tuple[ToolCall, ...]) -> None:
    assert parse_turn(text, CallStyle.HERMES, lenient=True).calls == calls


def test_words_around_a_call_are_kept_when_it_is_read_leniently() -> None:
    assert parse_turn(f"Sure: {WEATHER_JSON}", CallStyle.HERMES, lenient=True).text == "Sure:"


def test_a_broken_call_counts_as_an_attempt_and_an_answer_does_not() -> None:
    assert parse_turn("<tool_call>{", CallStyle.HERMES).attempts_a_call
    assert not parse_turn("no", CallStyle.HERMES).attempts_a_call


def test_the_style_of_a_template_is_found_by_what_it_writes() -> None:
    written = {
        f"<tool_call>\n{WEATHER_JSON}\n</tool_call><|im_end|>": CallStyle.HERMES,
        f"{WEATHER_LLAMA}<|eot_id|>": CallStyle.LLAMA,
        f"[TOOL_CALLS] [{WEATHER_JSON}]</s>": CallStyle.MISTRAL,
        "I call the weather": None,
    }
    assert {text: find_style(text, (WEATHER,)) for text in written} == written


@given(
    st.text(alphabet="{}[]\"':,<>/\\ \nabtool_callnamergus1|;", max_size=60), st.sampled_from(CallStyle), st.booleans()
)
def test_no_text_breaks_a_parser(text: str, style: CallStyle, lenient: bool) -> None:
    turn = parse_turn(text, style, lenient=lenient)
    assert all(isinstance(call.arguments, dict) for call in turn.calls)


def test_text_that_nests_too_deep_is_malformed_and_no_error() -> None:
    deep = '{"name": "f", "arguments": ' + '{"a": ' * 100_000
    assert parse_turn(f"<tool_call>{deep}</tool_call>", CallStyle.HERMES, lenient=True).malformed


@pytest.mark.timeout(10)
@pytest.mark.parametrize("litany", ["{", '{"a":', "{'a'", '{"name": '])
def test_a_model_that_writes_nothing_but_braces_holds_nobody_up(litany: str) -> None:
    assert parse_turn(litany * 20_000, CallStyle.HERMES, lenient=True).calls == ()
