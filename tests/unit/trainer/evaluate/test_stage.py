"""The evaluate stage on a model that knows its held-out rows by heart, and on its base, which knows nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune_trainer.contract.evaluation import EvaluationReport
from finetune_trainer.contract.job import write_job
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import Reason, read_termination
from finetune_trainer.data.heldout import write_heldout
from finetune_trainer.data.render import Renderer
from finetune_trainer.data.template import load_tokenizer
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluate.stage import Outcome, evaluate, termination_of
from tests.peft_models import with_adapter
from tests.tiny_run import DATA_PATH, MODEL_PATH
from tests.unit.trainer.evaluate.memorised import ROWS, make_job, write_memorised_job

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads for a model of this size mostly wait for each other, the more so where tests run in parallel."""
    with mock.patch("finetune_trainer.inference.device.num_available_cpus", return_value=1):
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("memorised")
    write_memorised_job(root)
    return root


@pytest.fixture(scope="module")
def outcome(root: Path) -> Outcome:
    return evaluate(*make_job(root), {})


@pytest.fixture(scope="module")
def report(outcome: Outcome) -> EvaluationReport:
    assert outcome.evaluated is not None
    return outcome.evaluated


def test_a_model_that_knows_the_rows_has_every_call_right_and_its_base_none(report: EvaluationReport) -> None:
    assert (report.rows, report.turns, report.calling_turns) == (3, 4, 2)
    for metric in ("function_accuracy", "exact_arguments", "argument_f1", "call_accuracy", "valid_json"):
        assert getattr(report.tuned, metric).value == 1.0, metric
    assert report.tuned.hallucinated_functions is not None
    assert report.tuned.hallucinated_functions.value == 0.0
    assert report.base.function_accuracy is not None
    assert report.base.function_accuracy.value == 0.0
    assert [(tool.tool, tool.turns, tool.tuned_exact_arguments) for tool in report.tools] == [
        ("get_weather", 2, 1.0),
        ("time", 1, 1.0),
    ]


def test_the_loss_is_that_of_transformers_and_peft_over_all_trained_tokens(
    report: EvaluationReport, root: Path
) -> None:
    _, paths = make_job(root)
    model = AutoModelForCausalLM.from_pretrained(paths.shared / MODEL_PATH, dtype=torch.float32)
    renderer = Renderer(load_tokenizer(paths.shared / MODEL_PATH))
    base = _mean_loss(model, renderer)
    tuned = _mean_loss(with_adapter(model, paths.adapter), renderer)
    assert report.base.loss is not None
    assert report.tuned.loss is not None
    assert report.base.loss.value == pytest.approx(base, rel=1e-4)
    assert report.tuned.loss.value == pytest.approx(tuned, rel=1e-3)


def _mean_loss(model: Any, renderer: Renderer) -> float:
    total, num_tokens = 0.0, 0
    for document in (document for row in ROWS for document in renderer.render(row.conversation)):
        tokens = torch.tensor(document.tokens[None].astype("int64"))
        labels = tokens.masked_fill(~torch.tensor(document.trained)[None], -100)
        with torch.no_grad():
            count = int((labels[:, 1:] != -100).sum())
            total += model(tokens, labels=labels).loss.item() * count
        num_tokens += count
    return total / num_tokens


def test_the_whole_report_and_every_turn_are_on_the_shared_filesystem(report: EvaluationReport, root: Path) -> None:
    _, paths = make_job(root)
    written = EvaluationReport.model_validate_json((paths.shared / report.report_path).read_text())
    assert written == report
    turns = [json.loads(line) for line in (paths.evaluation / "turns.jsonl").read_text().splitlines()]
    assert [turn["row"] for turn in turns] == [
        "calls.jsonl, row 1, turn 2",
        "calls.jsonl, row 1, turn 4",
        "calls.jsonl, row 2, turn 2",
        "calls.jsonl, row 3, turn 2",
    ]
    assert turns[0]["expected"]["calls"] == [{"name": "get_weather", "arguments": {"city": "Paris"}}]
    assert turns[1]["tuned"]["text"] == "It is sunny."
    assert (turns[0]["tuned"]["exact"], turns[0]["base"]["exact"]) == (True, False)


def test_turns_that_never_end_are_told(report: EvaluationReport) -> None:
    assert report.notes == ("the base model did not end 4 of 4 turns: cut at maxNewTokens",)


GATES: dict[str, tuple[dict[str, Any], Reason, str]] = {
    "a gate that is met": (
        {"functionAccuracy": ">= 0.85", "loss": "<= 1.5", "improvesBase": True},
        Reason.SUCCEEDED,
        "scored 3 rows, 4 turns: functionAccuracy 0.000 -> 1.000; exactArguments 0.000 -> 1.000; loss ",
    ),
    "a gate that is not met": (
        {"functionAccuracy": ">= 0.85", "loss": "<= 0.0001"},
        Reason.GATE_NOT_MET,
        "the gate is not met: loss <= 0.0001: found 0.0",
    ),
}


@pytest.mark.parametrize(("gate", "reason", "told"), GATES.values(), ids=GATES.keys())
def test_the_gate_decides_how_the_stage_ends_and_the_adapter_stays(
    root: Path, gate: dict[str, Any], reason: Reason, told: str
) -> None:
    job, paths = make_job(root, evaluation={"maxNewTokens": 160, "batchSize": 3, "gate": gate})
    termination = termination_of(evaluate(job, paths, {}))
    assert termination.reason is reason
    assert termination.message.startswith(told)
    assert termination.evaluated is not None
    assert (paths.adapter / "adapter_model.safetensors").exists()


def test_the_verb_ends_with_what_was_scored_where_the_gate_is_not_met(tmp_path: Path, root: Path) -> None:
    job, paths = make_job(root, evaluation={"maxNewTokens": 60, "maxTurns": 1, "gate": {"loss": "< 0.0001"}})
    (tmp_path / "job.yaml").write_text(write_job(job))
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "finetune_trainer", "evaluate", str(tmp_path / "job.yaml")),
            *("--shared", str(paths.shared), "--termination-log", str(tmp_path / "termination")),
        ],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "trainer"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert finished.stderr.startswith("GateNotMet: the gate is not met: loss < 0.0001: found 0.0")
    message = read_termination((tmp_path / "termination").read_text())
    assert message is not None
    assert message.reason is Reason.GATE_NOT_MET
    assert message.evaluated is not None
    assert (message.evaluated.turns, message.evaluated.gate_met) == (1, False)
    assert message.exported is not None
    assert "**not met**" in (paths.shared / message.exported.model_card_path).read_text()


def test_few_turns_are_drawn_where_few_are_asked_for(root: Path) -> None:
    reports = [
        evaluate(*make_job(root, evaluation={"maxNewTokens": 160, "maxTurns": 2}), {}).evaluated for _ in range(2)
    ]
    assert reports[0] is not None
    assert reports[1] is not None
    assert (reports[0].turns, reports[0].tuned) == (2, reports[1].tuned)


def test_a_job_that_is_not_to_be_evaluated_is_not(root: Path) -> None:
    outcome = evaluate(*make_job(root, evaluation={"enabled": False}), {})
    assert (outcome.evaluated, outcome.gate_met) == (None, True)


def _forget_training(paths: JobPaths) -> None:
    paths.trained.unlink()


def _hold_nothing_out(paths: JobPaths) -> None:
    write_heldout(paths.shared / DATA_PATH, [])


def _take_another_base(paths: JobPaths) -> None:
    config = json.loads((paths.adapter / "adapter_config.json").read_text())
    (paths.adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "team/other"}))


def _break_the_rows(paths: JobPaths) -> None:
    (paths.shared / DATA_PATH / "heldout.jsonl").write_text("{}\n")


REFUSED: dict[str, tuple[Callable[[JobPaths], None], Reason, str]] = {
    "a job that was not trained": (
        _forget_training,
        Reason.DATA_UNAVAILABLE,
        r"trained\.json: .* run train",
    ),
    "a gate without a row to measure on": (
        _hold_nothing_out,
        Reason.DATA_INVALID,
        r"none is held out, .* raise evaluation\.holdout\.share \(now 0\.02\)",
    ),
    "an adapter of another base": (
        _take_another_base,
        Reason.MODEL_UNSUPPORTED,
        "was trained on team/other, not on models/tiny",
    ),
    "rows that are none": (_break_the_rows, Reason.DATA_UNAVAILABLE, "run prepare again"),
}


@pytest.mark.parametrize(("damage", "reason", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_scored_is_refused(
    tmp_path: Path, root: Path, damage: Callable[[JobPaths], None], reason: Reason, told: str
) -> None:
    _copy(root, tmp_path)
    job, paths = make_job(tmp_path, evaluation={"gate": {"improvesBase": True}})
    damage(paths)
    with pytest.raises(TrainerError, match=told) as caught:
        evaluate(job, paths, {})
    assert caught.value.reason is reason


def test_without_a_gate_nothing_held_out_is_no_failure(tmp_path: Path, root: Path) -> None:
    _copy(root, tmp_path)
    job, paths = make_job(tmp_path)
    _hold_nothing_out(paths)
    termination = termination_of(evaluate(job, paths, {}))
    assert (termination.reason, termination.evaluated) == (Reason.SUCCEEDED, None)


def _copy(root: Path, to: Path) -> None:
    for file in root.rglob("*"):
        if file.is_file():
            target = to / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
