"""The last stage: one pod that scores base and tuned model on the held-out rows, judges the gate, and exports."""

from dataclasses import replace

from finetune_operator import status as tell
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.build import wanted
from finetune_operator.causes import Trouble
from finetune_operator.decide import children
from finetune_operator.decide.decision import Decision, Look
from finetune_operator.decide.one_pod import OnePodStage, run_one_pod
from finetune_operator.names import ConditionReason
from finetune_operator.workloads import PodSeen
from finetune_trainer.contract.outcome import Export
from finetune_trainer.contract.termination import TerminationMessage


def is_wanted(look: Look, status: FineTuneJobStatus) -> bool:
    """Whether there is anything to score or to export once the training is done."""
    spec = look.plan.job.spec
    if spec.export != Export():
        return True
    held_out = sum(dataset.rows_held_out for dataset in status.plan.datasets) if status.plan is not None else 0
    return spec.evaluation.enabled and (held_out > 0 or spec.evaluation.gate.is_set)


def evaluate(look: Look, status: FineTuneJobStatus) -> Decision:
    """Take the next step of evaluating a job that has trained; the gang's last pods go meanwhile."""
    decision = _evaluate(look, status)
    return replace(decision, delete=(*decision.delete, *children.holding_nodes(look.observed)))


def _evaluate(look: Look, status: FineTuneJobStatus) -> Decision:
    plan, job = look.plan, look.observed.evaluate
    stage = OnePodStage(
        job=job,
        wanted=(*wanted.shared_by_stages(plan), wanted.evaluate_job(plan)),
        doing="Evaluating",
        failures=status.evaluate_failures,
        tell_of_it=tell.evaluating,
        tell_of_failure=tell.evaluate_failed,
    )
    last_word = job.pods[0].termination if job is not None and job.pods else None
    if last_word is not None:
        # Also of one that fails: a gate that is not met says what was measured.
        status = tell.with_findings(status, last_word.evaluated, last_word.exported)
    outcome = run_one_pod(stage, look, status)
    if isinstance(outcome, Decision):
        return outcome
    if last_word is None or last_word.exported is None:
        return Decision(tell.failed(status, look.moment, _no_report(outcome, last_word)))
    return Decision(tell.evaluated(status, look.moment, last_word.message))


def _no_report(pod: PodSeen, last_word: TerminationMessage | None) -> Trouble:
    ended = f"ended with {last_word.reason}" if last_word is not None else "ended"
    return Trouble(
        ConditionReason.REPORT_MISSING,
        f"Pod {pod.name} {ended} but left no report of what it found. The image does not hold a trainer of this "
        "operator's version; see spec.compute.image.",
    )
