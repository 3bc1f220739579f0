"""The single-turn Python categories of the Berkeley Function Calling Leaderboard, scored by syntax.

Only the data of the package `bfcl-eval` is read, and nothing of it imported: it pins an older numpy and the clients of
every provider. So it is installed beside the trainer without what it asks for: `pip install --no-deps bfcl-eval`.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.conversation import BadRowError, Conversation, JsonObject, Message, Role
from finetune_trainer.errors import TrainerError
from finetune_trainer.workbench.bfcl_answers import Answer, as_tool, is_right
from finetune_trainer.workbench.model import Model

# Our names of the categories, and those of the files.
CATEGORIES = {
    "simple": "simple_python",
    "multiple": "multiple",
    "parallel": "parallel",
    "parallel_multiple": "parallel_multiple",
    "irrelevance": "irrelevance",
}
PACKAGE = "bfcl_eval"


@dataclass(frozen=True)
class Question:
    """One entry of a category."""

    id: str
    messages: tuple[Message, ...]
    functions: tuple[JsonObject, ...]
    answers: tuple[Answer, ...]  # none in the category irrelevance: nothing should be called


def find_data() -> Path:
    """Return the data directory of the installed package.

    Raises:
        TrainerError: DATA_UNAVAILABLE when it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(location) / "data").is_dir():
            return Path(location) / "data"
    raise TrainerError(
        Reason.DATA_UNAVAILABLE,
        "the leaderboard's data is not installed: `pip install --no-deps bfcl-eval`, or name its data directory with "
        "--data",
    )


def read_questions(data: Path, category: str) -> list[Question]:
    """Read a category.

    Raises:
        TrainerError: DATA_UNAVAILABLE when a file is missing or damaged.
    """
    pattern = rf"BFCL_v\d+_{CATEGORIES[category]}\.json"
    found = [path for path in data.glob("*.json") if re.fullmatch(pattern, path.name)]
    if len(found) != 1:
        raise TrainerError(Reason.DATA_UNAVAILABLE, f"{data}: expected one file {pattern}, found {len(found)}")
    [questions] = found
    answers = data / "possible_answer" / questions.name
    try:
        truths = {entry["id"]: entry["ground_truth"] for entry in _read_lines(answers)} if answers.exists() else {}
        return [
            Question(
                id=entry["id"],
                messages=tuple(Message(Role(turn["role"]), turn["content"]) for turn in entry["question"][0]),
                functions=tuple(entry["function"]),
                answers=tuple(truths.get(entry["id"], ())),
            )
            for entry in _read_lines(questions)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainerError(Reason.DATA_UNAVAILABLE, f"{questions}: cannot be read: {error}") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def run_bfcl(
    model: Model, data: Path, categories: Sequence[str], limit: int | None, batch_size: int, say: Callable[[str], None]
) -> dict[str, float]:
    """Ask every question of some categories, tell the share that is right, and return it by category."""
    shares = {}
    for category in categories:
        questions = read_questions(data, category)[:limit]
        prompts, num_refused = [], 0
        asked = []
        for question in questions:
            try:
                tools = tuple(map(as_tool, question.functions))
                prompts.append(model.prompt(Conversation(question.messages, tools)))
                asked.append(question)
            except BadRowError:
                num_refused += 1
        answers = model.answer(prompts, 512, batch_size)
        num_right = sum(_passes(question, model, answer) for question, answer in zip(asked, answers, strict=True))
        shares[category] = num_right / max(len(questions), 1)
        refused = f", {num_refused} that the chat template refuses" if num_refused else ""
        say(f"{category:<20}{100 * shares[category]:6.1f} %  {num_right} of {len(questions)}{refused}")
    return shares


def _passes(question: Question, model: Model, answer: str) -> bool:
    parsed = model.read(answer)
    if not question.answers:
        return not parsed.calls
    return not parsed.malformed and is_right(parsed.calls, question.answers, question.functions)
