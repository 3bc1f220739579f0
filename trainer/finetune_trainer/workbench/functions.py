"""Four questions about two functions, with pass or fail for each: the smoke test of a model that calls functions."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.check import check_calls
from finetune_trainer.data.conversation import BadRowError, Conversation, JsonObject, Message, Role, ToolCall
from finetune_trainer.workbench.model import Model

SYSTEM = "You are a helpful assistant with access to functions."
MAX_NEW_TOKENS = 512

FUNCTIONS: tuple[JsonObject, ...] = (
    {
        "name": "get_weather",
        "description": "Get current weather information for a location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "description": "Temperature unit"},
            },
            "required": ["location"],
        },
    },
    {
        "name": "schedule_meeting",
        "description": "Schedule a meeting with participants",
        "parameters": {
            "type": "object",
            "properties": {
                "title": {"type": "string", "description": "Meeting title"},
                "participants": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "List of participant emails",
                },
                "duration": {"type": "integer", "description": "Meeting duration in minutes"},
                "date": {"type": "string", "description": "Meeting date in YYYY-MM-DD format"},
            },
            "required": ["title", "participants", "date"],
        },
    },
)
TOOLS: tuple[JsonObject, ...] = tuple({"type": "function", "function": function} for function in FUNCTIONS)


@dataclass(frozen=True)
class Case:
    """A question, the function that answers it, and what must be true of the arguments."""

    question: str
    function: str
    checks: dict[str, Callable[[Any], bool]]


def _holds(*words: str) -> Callable[[Any], bool]:
    return lambda value: all(word.lower() in json.dumps(value, ensure_ascii=False).lower() for word in words)


CASES = (
    Case("What's the weather like in New York?", "get_weather", {"location": _holds("New York")}),
    Case(
        "Schedule a meeting with john@example.com and sarah@example.com for tomorrow about project review",
        "schedule_meeting",
        {
            "title": _holds("project review"),
            "participants": _holds("john@example.com", "sarah@example.com"),
            "date": bool,  # whichever day the model takes for tomorrow
        },
    ),
    Case(
        "Get the temperature in London in celsius",
        "get_weather",
        {"location": _holds("London"), "unit": lambda value: value == "celsius"},
    ),
    Case(
        "Book a 30-minute meeting with the team for 2024-01-15",
        "schedule_meeting",
        {"duration": lambda value: value == 30, "date": lambda value: value == "2024-01-15"},
    ),
)


def ask_all(model: Model, say: Callable[[str], None], temperature: float) -> bool:
    """Ask all questions, tell each answer and whether it passes, and return whether all pass."""
    say("\n=== Function Calling Test Results ===")
    prompts = [model.prompt(_conversation(case)) for case in CASES]
    answers = model.answer(prompts, MAX_NEW_TOKENS, len(prompts), temperature)
    num_passed = 0
    for number, (case, answer) in enumerate(zip(CASES, answers, strict=True), start=1):
        problem = find_problem(case, model, answer)
        num_passed += problem is None
        say(f"\nTest {number}: {case.question}")
        say(f"Response: {answer}")
        say("PASS" if problem is None else f"FAIL: {problem}")
        say("-" * 50)
    say(f"\n{num_passed} of {len(CASES)} passed")
    return num_passed == len(CASES)


def find_problem(case: Case, model: Model, answer: str) -> str | None:
    """Return what is wrong with an answer, or None."""
    parsed = model.read(answer)
    if parsed.malformed or not parsed.calls:
        found = [call.name for call in model.read(answer, lenient=True).calls]
        if found:
            return f"calls {', '.join(found)}, but not in the notation of the model's template"
        return "calls no function" if not parsed.malformed else "the call cannot be read"
    if len(parsed.calls) > 1:
        return f"makes {len(parsed.calls)} calls instead of one"
    return _problem_of_call(case, parsed.calls[0])


def _problem_of_call(case: Case, call: ToolCall) -> str | None:
    if call.name != case.function:
        return f"calls {call.name} instead of {case.function}"
    try:
        check_calls(Conversation((Message(Role.ASSISTANT, "", (call,)),), TOOLS))
    except BadRowError as error:
        return str(error)
    wrong = [
        name
        for name, is_right in case.checks.items()
        if name not in call.arguments or not is_right(call.arguments[name])
    ]
    return f"{', '.join(wrong)} is not what was asked for" if wrong else None


def _conversation(case: Case) -> Conversation:
    return Conversation((Message(Role.SYSTEM, SYSTEM), Message(Role.USER, case.question)), TOOLS)
