"""Renders the hand-written scenarios under manifests/samples/data/scenarios into rows of the three data formats.

A scenario says who said, called and answered what; a format says how that is spelt. Hermes follows
NousResearch/hermes-function-calling-v1 (with JSON where that has Python literals), Glaive follows
glaiveai/glaive-function-calling-v2, the third is what OpenAI's fine-tuning takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from dev.hub.sample_datasets import GLAIVE_ROWS, HERMES_ROWS, OPENAI_ROWS, SAMPLES

SCENARIOS = SAMPLES / "scenarios"

Kind = Literal["single_call", "parallel_calls", "multi_turn", "asks_first", "no_tool_fits", "plain_answer"]
Json = Any  # a tree of what json.dumps takes

_HERMES_SYSTEM = """\
You are a function calling AI model. You are provided with function signatures within <tools> </tools> XML tags. \
You may call one or more functions to assist with the user query. \
Don't make assumptions about what values to plug into functions.
<tools>
{tools}
</tools>
For each function call return a json object with function name and arguments within <tool_call> </tool_call> tags \
with the following schema:
<tool_call>
{{"name": <function-name>, "arguments": <args-dict>}}
</tool_call>"""

_GLAIVE_SYSTEM = "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
_GLAIVE_END = " <|endoftext|>"


class ScenarioError(ValueError):
    """A scenario file says something that no format can spell; the message names the file and the scenario."""


@dataclass(frozen=True)
class Call:
    """One function call and what the function gave back."""

    name: str
    arguments: Mapping[str, Json]
    result: Json


@dataclass(frozen=True)
class Turn:
    """One turn: what the user or the assistant said, or the assistant's calls, all made at once, with their results."""

    speaker: Literal["user", "assistant"]
    text: str = ""
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """One conversation with the tools it was given, each a JSON schema function: name, description, parameters."""

    id: str
    domain: str
    kind: Kind
    tools: tuple[Mapping[str, Json], ...]
    turns: tuple[Turn, ...]


def write_all() -> dict[Path, int]:
    """Write the three files of sample rows; returns how many rows each has got."""
    return {path: _write_rows(path, rows) for path, rows in render_all().items()}


def render_all() -> dict[Path, list[dict[str, Json]]]:
    """The rows of each file, in the order of the scenario files and of the scenarios in them."""
    renderers: dict[Path, tuple[str, Callable[[Scenario], dict[str, Json]]]] = {
        HERMES_ROWS: ("hermes", hermes_row),
        GLAIVE_ROWS: ("glaive", glaive_row),
        OPENAI_ROWS: ("openai", openai_row),
    }
    return {path: [render(each) for each in load_scenarios(name)] for path, (name, render) in renderers.items()}


def load_scenarios(format_name: str) -> Iterator[Scenario]:
    """The scenarios written for one format: hermes, glaive or openai. Raises ScenarioError."""
    for path in sorted(SCENARIOS.glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        tools = {name: _function(name, written) for name, written in content["tools"].items()}
        for written in content.get(format_name, []):
            try:
                yield _scenario(path.stem, written, tools)
            except (KeyError, ValueError) as error:
                raise ScenarioError(f"{path.name}, {written.get('id')}: {error!r}") from error


def _function(name: str, written: Mapping[str, Json]) -> dict[str, Json]:
    parameters = {"type": "object", "properties": written["parameters"], "required": written.get("required", [])}
    return {"name": name, "description": written["description"], "parameters": parameters}


def _scenario(domain: str, written: Mapping[str, Json], tools: Mapping[str, Mapping[str, Json]]) -> Scenario:
    turns: list[Turn] = []
    steps = iter(written["turns"])
    for step in steps:
        if "calls" in step:
            results = next(steps)["results"]
            turns.append(Turn("assistant", step.get("assistant", ""), tuple(_calls(step["calls"], results))))
        else:
            ((speaker, text),) = step.items()
            turns.append(Turn(speaker, text))
    return Scenario(
        written["id"], domain, written["kind"], tuple(tools[name] for name in written["tools"]), tuple(turns)
    )


def _calls(written: Sequence[Mapping[str, Json]], results: Sequence[Json]) -> Iterator[Call]:
    for call, result in zip(written, results, strict=True):
        ((name, arguments),) = call.items()
        yield Call(name, arguments, result)


def hermes_row(scenario: Scenario) -> dict[str, Json]:
    """`conversations` of system, human, gpt and tool; several calls and their results share a turn."""
    tools = json.dumps([{"type": "function", "function": tool} for tool in scenario.tools], ensure_ascii=False)
    conversations = [{"from": "system", "value": _HERMES_SYSTEM.format(tools=tools)}]
    for turn in scenario.turns:
        if turn.speaker == "user":
            conversations.append({"from": "human", "value": turn.text})
            continue
        calls = [_tagged("tool_call", {"name": call.name, "arguments": call.arguments}) for call in turn.calls]
        conversations.append({"from": "gpt", "value": "\n".join([turn.text] * bool(turn.text) + calls)})
        if turn.calls:
            responses = [_tagged("tool_response", {"name": call.name, "content": call.result}) for call in turn.calls]
            conversations.append({"from": "tool", "value": "\n".join(responses)})
    return {
        "id": scenario.id,
        "conversations": conversations,
        "category": scenario.domain,
        "subcategory": scenario.kind,
    }


def _tagged(tag: str, content: Json) -> str:
    return f"<{tag}>\n{json.dumps(content, ensure_ascii=False)}\n</{tag}>"


def glaive_row(scenario: Scenario) -> dict[str, Json]:
    """`system` with indented functions, `chat` as one text. Raises ScenarioError for calls that Glaive cannot spell."""
    functions = "\n\n".join(json.dumps(tool, indent=4, ensure_ascii=False) for tool in scenario.tools)
    pieces = []
    for turn in scenario.turns:
        if turn.speaker == "user":
            pieces.append(f"USER: {turn.text}")
        elif not turn.calls:
            pieces.append(f"ASSISTANT: {turn.text}{_GLAIVE_END}")
        else:
            if len(turn.calls) > 1 or turn.text:
                raise ScenarioError(f"{scenario.id}: a Glaive turn is one call and nothing else")
            (call,) = turn.calls
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            pieces.append(
                f'ASSISTANT: <functioncall> {{"name": "{call.name}", "arguments": \'{arguments}\'}}{_GLAIVE_END}'
            )
            pieces.append(f"FUNCTION RESPONSE: {json.dumps(call.result, ensure_ascii=False)}")
    return {"system": f"{_GLAIVE_SYSTEM}{functions}\n", "chat": "\n\n\n".join(pieces) + "\n\n\n"}


def openai_row(scenario: Scenario) -> dict[str, Json]:
    """`messages` with tool_calls, whose arguments are JSON in a string, and `tools` beside them."""
    messages: list[dict[str, Json]] = []
    for turn in scenario.turns:
        if not turn.calls:
            messages.append({"role": turn.speaker, "content": turn.text})
            continue
        first_id = sum(message["role"] == "tool" for message in messages)
        calls = {f"call_{first_id + position}": call for position, call in enumerate(turn.calls)}
        tool_calls = [{"id": key, "type": "function", "function": _openai_call(call)} for key, call in calls.items()]
        messages.append({"role": "assistant", "content": turn.text or None, "tool_calls": tool_calls})
        for key, call in calls.items():
            content = json.dumps(call.result, ensure_ascii=False)
            messages.append({"role": "tool", "tool_call_id": key, "content": content})
    return {"messages": messages, "tools": [{"type": "function", "function": tool} for tool in scenario.tools]}


def _openai_call(call: Call) -> dict[str, str]:
    return {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}


def _write_rows(path: Path, rows: Sequence[Mapping[str, Json]]) -> int:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)
