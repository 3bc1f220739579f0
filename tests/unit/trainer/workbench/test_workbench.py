"""The commands for a person with an adapter in hand, on a random model that can do nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from finetune_trainer.__main__ import main
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.workbench.bfcl import read_questions
from finetune_trainer.workbench.functions import CASES, find_problem
from finetune_trainer.workbench.model import Choice, Model, load_model
from tests.chat_models import CHATML_WITH_TOOLS, VOCABULARY_SIZE, write_tokenizer
from tests.peft_models import write_random_adapter
from tests.tiny_run import write_tiny_model

COMMIT = "c" * 40
BASE = f"models/team--base@{COMMIT}"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with mock.patch("finetune_trainer.inference.device.num_available_cpus", return_value=1):
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared filesystem with a cached base model and an adapter of it."""
    shared = tmp_path_factory.mktemp("shared")
    model = write_tiny_model(shared / BASE, vocab_size=VOCABULARY_SIZE, max_position_embeddings=2048)
    write_tokenizer(shared / BASE, CHATML_WITH_TOOLS)
    (shared / BASE / "READY").write_text("{}")
    write_random_adapter(model, shared / "adapter")
    path = shared / "adapter/adapter_config.json"
    named = {"base_model_name_or_path": "team/base", "revision": COMMIT}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    return shared


@pytest.fixture(scope="module")
def model(shared: Path) -> Model:
    import torch

    return load_model(Choice(shared / "adapter", None, shared, torch.device("cpu")))


def run(command: str, shared: Path, *arguments: str) -> int:
    return main([command, "--adapter", str(shared / "adapter"), "--shared", str(shared), "--device", "cpu", *arguments])


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


MEETING = {"title": "Project review", "participants": ["john@example.com", "sarah@example.com"], "date": "2026-11-24"}
# number of the question, answer, what is wrong
ANSWERED: dict[str, tuple[int, str, str | None]] = {
    "the weather": (0, call("get_weather", location="New York, NY"), None),
    "the weather elsewhere": (0, call("get_weather", location="York"), "location is not what was asked for"),
    "no call": (0, "It is sunny.", "calls no function"),
    "a call that breaks off": (0, "<tool_call>{", "the call cannot be read"),
    "another notation": (
        0,
        '{"name": "get_weather", "parameters": {"location": "New York"}}',
        "calls get_weather, but not in the notation of the model's template",
    ),
    "two calls": (0, call("get_weather", location="New York") * 2, "makes 2 calls instead of one"),
    "the wrong function": (0, call("schedule_meeting", **MEETING), "calls schedule_meeting instead of get_weather"),
    "an argument that breaks the schema": (0, call("get_weather", location=["New York"]), "is not of type 'string'"),
    "the meeting": (1, call("schedule_meeting", **MEETING), None),
    "the meeting without one of the two": (
        1,
        call("schedule_meeting", **MEETING | {"participants": ["john@example.com"]}),
        "participants is not what was asked for",
    ),
    "a required argument is missing": (1, call("schedule_meeting", title="Project review"), "required property"),
    "the unit": (2, call("get_weather", location="London, UK", unit="celsius"), None),
    "without the unit": (2, call("get_weather", location="London"), "unit is not what was asked for"),
    "half an hour": (
        3,
        call("schedule_meeting", title="Team", participants=["team"], duration=30, date="2024-01-15"),
        None,
    ),
    "an hour on another day": (
        3,
        call("schedule_meeting", title="Team", participants=["team"], duration=60, date="2024-01-16"),
        "duration, date is not what was asked for",
    ),
}


@pytest.mark.parametrize(("number", "answer", "problem"), ANSWERED.values(), ids=ANSWERED.keys())
def test_an_answer_passes_or_its_problem_is_named(model: Model, number: int, answer: str, problem: str | None) -> None:
    found = find_problem(CASES[number], model, answer)
    assert found == problem if problem is None else problem in (found or "")


def test_each_of_the_four_questions_is_answered_and_judged(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test-functions", shared) == 1
    told = capsys.readouterr().out
    assert "=== Function Calling Test Results ===" in told
    assert "Test 1: What's the weather like in New York?\nResponse: " in told
    assert "Test 4: Book a 30-minute meeting with the team for 2024-01-15\n" in told
    assert told.count("FAIL: ") == 4
    assert "0 of 4 passed" in told


def test_the_speed_is_told_for_each_batch_size(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--batch-sizes", "1", "3", "--prompt-tokens", "8", "--new-tokens", "4")
    assert run("benchmark", shared, *sizes) == 0
    *_, heading, one, three = capsys.readouterr().out.splitlines()
    assert heading.split() == ["batch", "first", "token", "s", "tokens/s", "tokens/s", "a", "row", "peak", "GiB"]
    assert [float(row.split()[0]) for row in (one, three)] == [1, 3]
    for row in (one, three):
        _, first_token_seconds, *rates_and_memory = map(float, row.split())
        assert first_token_seconds >= 0  # a model so small may need less than is printed
        assert min(rates_and_memory) > 0


def write_leaderboard(data: Path) -> None:
    (data / "possible_answer").mkdir(parents=True)
    function = {
        "name": "play",
        "description": "Play a song",
        "parameters": {"type": "dict", "properties": {"song": {"type": "string"}}, "required": ["song"]},
    }
    question = {"question": [[{"role": "user", "content": "Play it"}]], "function": [function]}
    for category in ("simple_python", "irrelevance"):
        rows = [question | {"id": f"{category}_{number}"} for number in range(2)]
        (data / f"BFCL_v4_{category}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    truths = [{"id": f"simple_python_{number}", "ground_truth": [{"play": {"song": ["it"]}}]} for number in range(2)]
    (data / "possible_answer/BFCL_v4_simple_python.json").write_text("\n".join(map(json.dumps, truths)))


def test_a_model_that_calls_nothing_is_right_only_where_nothing_fits(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_leaderboard(tmp_path)
    arguments = ("--data", str(tmp_path), "--categories", "simple", "irrelevance")
    assert run("bfcl", shared, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["simple", "0.0"], ["irrelevance", "100.0"]]
    assert run("bfcl", shared, *arguments, "--limit", "1") == 0
    assert "1 of 1" in capsys.readouterr().out


def test_data_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"expected one file BFCL_v.*_parallel.*json, found 0") as caught:
        read_questions(tmp_path, "parallel")
    assert caught.value.reason is Reason.DATA_UNAVAILABLE


def test_a_base_model_that_is_not_there_is_told(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["benchmark", "--adapter", str(shared / "adapter"), "--shared", str(tmp_path), "--device", "cpu"]
    assert main(arguments) == 1
    assert "its base model team/base" in capsys.readouterr().err
