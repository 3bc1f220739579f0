"""The evaluate stage: base and tuned model on the held-out rows, the gate, the export.

read what prepare and train left -> load base and adapter once -> let both write, measure their loss -> judge -> gate ->
report -> export
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from finetune_trainer.cache import write_atomically
from finetune_trainer.contract.evaluation import EvaluationReport, ExportReport, Metric, check_gate
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.report import Report
from finetune_trainer.contract.termination import PreparedReport, Reason, TerminationMessage, TrainedReport
from finetune_trainer.data.heldout import HeldOutRow, read_heldout
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluate.answers import Answer, write_answers
from finetune_trainer.evaluate.comparison import TurnScore, judge
from finetune_trainer.evaluate.statistics import Floats, Judged, make_scores, score_tools
from finetune_trainer.evaluate.subject import Subject, load_subject
from finetune_trainer.export.stage import Result, export
from finetune_trainer.inference.generate import Writing
from finetune_trainer.storage import storage_errors
from finetune_trainer.toolcalls import ParsedTurn

logger = logging.getLogger(__name__)

REPORT_FILE = "evaluation.json"
TURNS_FILE = "turns.jsonl"

SomeReport = TypeVar("SomeReport", bound=Report)


@dataclass(frozen=True)
class Outcome:
    """What the stage found and made."""

    evaluated: EvaluationReport | None  # None: nothing was to be scored
    exported: ExportReport

    @property
    def gate_met(self) -> bool:
        """Whether the job may be called a success."""
        return self.evaluated is None or self.evaluated.gate_met


@dataclass(frozen=True)
class Performance:
    """What one model did with the questions."""

    answers: Sequence[Answer]
    scores: Sequence[TurnScore]  # as a server reads the answers
    lenient_scores: Sequence[TurnScore]  # as a patient person does
    losses: tuple[Floats, Floats]  # of each row: summed, and number of tokens


def evaluate(job: TrainerJob, paths: JobPaths, environment: Mapping[str, str]) -> Outcome:
    """Score a trained job on its held-out rows, apply its gate, and export.

    Args:
        job: what was trained.
        paths: where its files are.
        environment: HF_TOKEN and HF_ENDPOINT for an upload, each optional.

    Raises:
        TrainerError: with a reason and what to do about it. A gate that is not met is no error: `Outcome` says so.
    """
    prepared = read_report(paths.prepared, PreparedReport, "prepare")
    trained = read_report(paths.trained, TrainedReport, "train")
    evaluated = None
    if job.spec.evaluation.enabled:
        rows = read_heldout(paths.shared / prepared.data_path)
        if rows:
            evaluated = score(job, paths, prepared, rows)
        elif job.spec.evaluation.gate.is_set:
            raise TrainerError(Reason.DATA_INVALID, _no_rows_for_the_gate(job, prepared))
        else:
            logger.info("no row is held out, so nothing is scored; a larger evaluation.holdout.share holds out more")
    return Outcome(evaluated, export(job, paths, Result(prepared, trained, evaluated), environment))


def read_report(path: Path, kind: type[SomeReport], verb: str) -> SomeReport:
    """Read what an earlier stage left.

    Raises:
        TrainerError: DATA_UNAVAILABLE when that stage has not run.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainerError(
            Reason.DATA_UNAVAILABLE, f"{path}: cannot be read ({error}); run {verb} for this job first"
        ) from error


def _no_rows_for_the_gate(job: TrainerJob, prepared: PreparedReport) -> str:
    holdout = job.spec.evaluation.holdout
    num_rows = sum(dataset.rows_kept for dataset in prepared.datasets)
    return (
        f"evaluation.gate is set, but of {num_rows} rows none is held out, so nothing can be measured: raise "
        f"evaluation.holdout.share (now {holdout.share:g}) or evaluation.holdout.maxRows (now {holdout.max_rows}), add "
        "rows, or remove the gate"
    )


def score(job: TrainerJob, paths: JobPaths, prepared: PreparedReport, rows: Sequence[HeldOutRow]) -> EvaluationReport:
    """Score base and tuned model, and write the report into the job's evaluation directory.

    Raises:
        TrainerError: OUT_OF_GPU_MEMORY, DEVICE_UNAVAILABLE, STORAGE_FULL, or what is wrong with model, adapter or rows.
    """
    started = time.monotonic()
    subject = load_subject(job, paths, prepared, rows)
    logger.info("scoring base and tuned model on %d rows, %d turns", len(rows), len(subject.turns))
    try:
        performances = [perform(job, subject, adapted=adapted) for adapted in (False, True)]
    except torch.OutOfMemoryError as error:
        raise TrainerError(
            Reason.OUT_OF_GPU_MEMORY,
            f"{error}. Not even one turn fits: lower evaluation.maxNewTokens, or use a larger GPU",
        ) from error
    seed, row_of_turn = job.spec.training.seed, [turn.row for turn in subject.turns]
    base, tuned = (make_scores(Judged(did.scores, row_of_turn, *did.losses), seed) for did in performances)
    gate = check_gate(job.spec.evaluation.gate, base, tuned)
    report = EvaluationReport(
        rows=len(rows),
        turns=len(subject.turns),
        calling_turns=sum(bool(turn.expected) for turn in subject.turns),
        base=base,
        tuned=tuned,
        tools=score_tools(*(did.scores for did in performances)),
        gate=gate,
        gate_met=all(result.met for result in gate),
        seconds=round(time.monotonic() - started, 1),
        report_path=str((paths.evaluation / REPORT_FILE).relative_to(paths.shared)),
        notes=_notes(subject, *performances),
    )
    with storage_errors(paths.evaluation):
        write_atomically(paths.evaluation / TURNS_FILE, _turn_lines(subject, *performances))
        write_atomically(paths.evaluation / REPORT_FILE, report.model_dump_json(by_alias=True, indent=1))
    return report


def perform(job: TrainerJob, subject: Subject, *, adapted: bool) -> Performance:
    """Let the base or the tuned model write every turn, and measure its loss.

    Raises:
        torch.OutOfMemoryError: not even one turn fits the GPU's memory.
    """
    settings = job.spec.evaluation
    writing = Writing(subject.stop_tokens, settings.max_new_tokens, adapted)
    answers = write_answers(subject.decoder, subject.turns, subject.dialect, writing, settings.batch_size)

    def judged(readings: Sequence[ParsedTurn]) -> list[TurnScore]:
        return [
            judge(turn.expected, reading, turn.functions) for turn, reading in zip(subject.turns, readings, strict=True)
        ]

    return Performance(
        answers=answers,
        scores=judged([answer.strict for answer in answers]),
        lenient_scores=judged([answer.lenient for answer in answers]),
        losses=subject.row_losses(adapted=adapted),
    )


def _notes(subject: Subject, base: Performance, tuned: Performance) -> tuple[str, ...]:
    """What a reader of the scores has to know."""
    notes = []
    if subject.num_turns_left_out:
        notes.append(
            f"{subject.num_turns_left_out} turns are not scored: what stands before them is longer than the model reads"
        )
    if subject.dialect.style is None:
        notes.append("the notation in which the model's template writes calls has no parser: calls are read leniently")
    elif strictness := _strictness(base, tuned):
        notes.append(strictness)
    for name, did in (("base", base), ("tuned", tuned)):
        num_cut = sum(not answer.ended for answer in did.answers)
        if num_cut:
            notes.append(f"the {name} model did not end {num_cut} of {len(did.answers)} turns: cut at maxNewTokens")
    return tuple(notes)


def _strictness(base: Performance, tuned: Performance) -> str | None:
    """Say how many more calls would be right if the notation did not matter."""

    def num_right(scores: Sequence[TurnScore]) -> int:
        return sum(score.should_call and score.functions_right for score in scores)

    strict, lenient = [
        [num_right(scores) for scores in of]
        for of in ((base.scores, tuned.scores), (base.lenient_scores, tuned.lenient_scores))
    ]
    if strict == lenient:
        return None
    return (
        f"read leniently, whatever the notation, the functions are right in {lenient[0]} turns of the base instead of "
        f"{strict[0]}, and in {lenient[1]} of the tuned model instead of {strict[1]}"
    )


def _turn_lines(subject: Subject, base: Performance, tuned: Performance) -> str:
    """Return a line of JSON for each turn: what should be said, what either model wrote, and what that is worth."""
    lines = []
    for number, turn in enumerate(subject.turns):
        document: dict[str, Any] = {
            "row": turn.place,
            "expected": {"calls": [asdict(call) for call in turn.expected], "text": turn.expected_text},
        }
        for name, did in (("base", base), ("tuned", tuned)):
            worth = {key: value for key, value in asdict(did.scores[number]).items() if key != "tools"}
            document[name] = {"text": did.answers[number].text, **worth}
        lines.append(json.dumps(document, ensure_ascii=False) + "\n")
    return "".join(lines)


def termination_of(outcome: Outcome) -> TerminationMessage:
    """Return the last word of the stage: a success, or a gate that was not met, with everything that was found."""
    return TerminationMessage(
        reason=Reason.SUCCEEDED if outcome.gate_met else Reason.GATE_NOT_MET,
        message=_summary(outcome),
        evaluated=outcome.evaluated,
        exported=outcome.exported,
    )


def _summary(outcome: Outcome) -> str:
    report = outcome.evaluated
    if report is None:
        return f"nothing was scored; the model card is {outcome.exported.model_card_path}"
    scored = f"scored {report.rows} rows, {report.turns} turns: {'; '.join(_changes(report)) or 'nothing to measure'}"
    if report.gate_met:
        return f"{scored}. The gate is met" if report.gate else scored
    missed = "; ".join(f"{result.condition}: found {result.found}" for result in report.gate if not result.met)
    return (
        f"the gate is not met: {missed}. The adapter is kept, and what either model wrote is in "
        f"{Path(report.report_path).with_name(TURNS_FILE)}: train longer or on more data, or lower the gate. {scored}"
    )


def _changes(report: EvaluationReport) -> list[str]:
    """Return the metrics that people ask for first, of base and tuned model."""
    changes = []
    for metric in (Metric.FUNCTION_ACCURACY, Metric.EXACT_ARGUMENTS, Metric.LOSS):
        before, after = report.base.measure(metric), report.tuned.measure(metric)
        if before is not None and after is not None:
            changes.append(f"{metric} {before.value:.3f} -> {after.value:.3f}")
    return changes
