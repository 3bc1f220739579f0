"""The sample data: true to its formats, valid against its own schemas, varied, and up to date with its scenarios."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from dev.hub.sample_datasets import GLAIVE_ROWS, HERMES_ROWS, OPENAI_ROWS, SAMPLES
from dev.hub.sample_rows import (
    Call,
    Scenario,
    ScenarioError,
    Turn,
    glaive_row,
    hermes_row,
    load_scenarios,
    openai_row,
    render_all,
)

SCENARIOS = {name: list(load_scenarios(name)) for name in ("hermes", "glaive", "openai")}
ALL = [scenario for scenarios in SCENARIOS.values() for scenario in scenarios]

ROOM_LIGHT = {
    "name": "set_light",
    "description": "Switch a light.",
    "parameters": {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]},
}


def a_scenario(*turns: Turn) -> Scenario:
    return Scenario("a-light", "home", "single_call", (ROOM_LIGHT,), turns)


TWO_LIGHTS = a_scenario(
    Turn("user", "Hall and attic on."),
    Turn("assistant", calls=(Call("set_light", {"room": "hall"}, {"ok": 1}), Call("set_light", {"room": "attic"}, 2))),
    Turn("assistant", "Both are on."),
)
ONE_LIGHT = a_scenario(
    Turn("user", "Hall on."),
    Turn("assistant", calls=(Call("set_light", {"room": "hall"}, {"ok": True}),)),
    Turn("assistant", "It is on."),
)


def calls(scenario: Scenario) -> Iterator[Call]:
    return (call for turn in scenario.turns for call in turn.calls)


def test_a_hermes_row_spells_calls_and_responses_with_tags_and_shares_turns() -> None:
    system, *rest = hermes_row(TWO_LIGHTS)["conversations"]
    assert rest == [
        {"from": "human", "value": "Hall and attic on."},
        {
            "from": "gpt",
            "value": '<tool_call>\n{"name": "set_light", "arguments": {"room": "hall"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "set_light", "arguments": {"room": "attic"}}\n</tool_call>',
        },
        {
            "from": "tool",
            "value": '<tool_response>\n{"name": "set_light", "content": {"ok": 1}}\n</tool_response>\n'
            '<tool_response>\n{"name": "set_light", "content": 2}\n</tool_response>',
        },
        {"from": "gpt", "value": "Both are on."},
    ]
    assert system["from"] == "system"
    (listed,) = re.findall(r"<tools>\n(.*)\n</tools>", system["value"])
    assert json.loads(listed) == [{"type": "function", "function": ROOM_LIGHT}]


def test_a_glaive_row_is_a_text_with_quoted_arguments_and_an_end_after_each_answer() -> None:
    row = glaive_row(ONE_LIGHT)
    assert row["chat"] == (
        "USER: Hall on.\n\n\n"
        'ASSISTANT: <functioncall> {"name": "set_light", "arguments": \'{"room": "hall"}\'} <|endoftext|>\n\n\n'
        'FUNCTION RESPONSE: {"ok": true}\n\n\n'
        "ASSISTANT: It is on. <|endoftext|>\n\n\n"
    )
    opening, functions = row["system"].split(" -\n")
    assert opening == "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required"
    assert json.loads(functions) == ROOM_LIGHT


def test_two_calls_at_once_cannot_be_spelt_in_glaive_and_are_refused() -> None:
    with pytest.raises(ScenarioError, match="a-light"):
        glaive_row(TWO_LIGHTS)


def test_an_openai_row_ties_each_result_to_its_call_and_keeps_arguments_in_a_string() -> None:
    row = openai_row(TWO_LIGHTS)
    assert row["tools"] == [{"type": "function", "function": ROOM_LIGHT}]
    assert row["messages"][1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_0", "type": "function", "function": {"name": "set_light", "arguments": '{"room": "hall"}'}},
            {"id": "call_1", "type": "function", "function": {"name": "set_light", "arguments": '{"room": "attic"}'}},
        ],
    }
    assert [message.get("tool_call_id") for message in row["messages"]] == [None, None, "call_0", "call_1", None]


def test_the_committed_files_are_what_the_scenarios_say() -> None:
    for path, rows in render_all().items():
        committed = [json.loads(line) for line in path.read_text().splitlines()]
        assert committed == rows, f"run `python -m dev.hub samples`: {path.name} differs from its scenarios"


def test_every_call_is_valid_against_the_schema_of_its_tool() -> None:
    violations = []
    for scenario in ALL:
        schemas: dict[str, Any] = {tool["name"]: tool["parameters"] for tool in scenario.tools}
        for call in calls(scenario):
            closed = schemas[call.name] | {"additionalProperties": False}
            validator = jsonschema.Draft202012Validator(closed, format_checker=jsonschema.FormatChecker())
            violations += [(scenario.id, call.name, each.message) for each in validator.iter_errors(call.arguments)]
    assert violations == []


def test_every_schema_is_a_schema() -> None:
    for scenario in ALL:
        for tool in scenario.tools:
            jsonschema.Draft202012Validator.check_schema(tool["parameters"])
            assert set(tool["parameters"]["required"]) <= set(tool["parameters"]["properties"]), tool["name"]


def test_no_two_conversations_are_the_same_in_any_file() -> None:
    ids = Counter(scenario.id for scenario in ALL)
    openings = Counter(scenario.turns[0].text.casefold() for scenario in ALL)
    closings = Counter(scenario.turns[-1].text.casefold() for scenario in ALL)
    assert {text for counter in (ids, openings, closings) for text, count in counter.items() if count > 1} == set()


def test_the_files_hold_as_many_rows_as_their_readme_says() -> None:
    readme = (SAMPLES / "README.md").read_text()
    for path in (HERMES_ROWS, GLAIVE_ROWS, OPENAI_ROWS):
        assert f"| `{path.name}` | {len(path.read_text().splitlines())} |" in readme
    assert len(SCENARIOS["hermes"]) + len(SCENARIOS["glaive"]) >= 200
    assert len(SCENARIOS["openai"]) >= 20


def test_the_kinds_of_conversations_are_as_many_as_the_readme_says() -> None:
    readme = (SAMPLES / "README.md").read_text()
    for kind, count in Counter(scenario.kind for scenario in ALL).items():
        assert f"| {kind} | {count} |" in readme, (kind, count)


def test_at_least_fifty_tools_are_called() -> None:
    assert len({call.name for scenario in ALL for call in calls(scenario)}) >= 50


def test_a_conversation_is_of_the_kind_that_it_is_filed_under() -> None:
    assert [scenario.id for scenario in ALL if not is_of_its_kind(scenario)] == []


def is_of_its_kind(scenario: Scenario) -> bool:
    calls_at_once = max(len(turn.calls) for turn in scenario.turns)
    turns_that_call = sum(bool(turn.calls) for turn in scenario.turns)
    match scenario.kind:
        case "single_call":
            return (calls_at_once, turns_that_call) == (1, 1) and bool(scenario.turns[1].calls)
        case "parallel_calls":
            return calls_at_once >= 2
        case "multi_turn":
            return turns_that_call >= 2
        case "asks_first":
            return "?" in scenario.turns[1].text and turns_that_call == 1
        case "no_tool_fits" | "plain_answer":
            return turns_that_call == 0


def test_every_conversation_begins_with_the_user_and_ends_with_words_of_the_assistant() -> None:
    for scenario in ALL:
        assert scenario.turns[0].speaker == "user", scenario.id
        assert scenario.turns[-1].speaker == "assistant", scenario.id
        assert scenario.turns[-1].text, scenario.id
        for before, after in zip(scenario.turns, scenario.turns[1:], strict=False):
            assert not (before.speaker == after.speaker == "user"), scenario.id
