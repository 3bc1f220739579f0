"""What `status` shows: a table of jobs, or all that is told of one."""

from collections.abc import Sequence
from datetime import datetime

from rich.text import Text

from finetune_cli import amounts
from finetune_cli.draw.columns import columns, facts, phase_style
from finetune_cli.jobs import Job

_TABLE_HEADS = ("name", "phase", "step", "loss", "eta", "gpus", "gpu-hours", "restarts", "age", "reason")
_SHORT_REASONS = ("Running", "Succeeded", "Preparing", "Starting", "Evaluating")


def draw_jobs(jobs: Sequence[Job], now: datetime, *, everywhere: bool) -> Text:
    """Return a table of jobs, a line each."""
    heads = ("namespace", *_TABLE_HEADS) if everywhere else _TABLE_HEADS
    return columns(heads, [(job.namespace, *_row(job, now)) if everywhere else _row(job, now) for job in jobs])


def draw_job(job: Job, now: datetime) -> Text:
    """Return all that is told of one job."""
    status = job.status
    pairs: list[tuple[str, str | Text]] = [
        ("Name", f"{job.namespace}/{job.name}"),
        ("Phase", Text.assemble((job.phase, phase_style(job.phase)), _because(job))),
        ("Says", job.explanation),
        ("Age", amounts.since(job.created, now)),
        ("Model", status.plan.model if status.plan else status.model or ""),
        ("Compute", _compute(job)),
        ("Plan", _plan(job)),
        ("Progress", _progress(job)),
        ("Checkpoint", _checkpoint(job, now)),
        ("Attempts", _attempts(job, now)),
        ("GPU time" if job.on_gpus else "CPU time", _accounting(job)),
        ("Result", _result(job)),
        ("Evaluation", _evaluation(job)),
    ]
    return facts(pairs)


def gpu_seconds(job: Job) -> int:
    """Return the GPU-seconds that a job has used up: all that pods held GPUs for."""
    ledger = job.status.accounting
    if ledger is None:
        return 0
    return ledger.starting_gpu_seconds + ledger.productive_gpu_seconds + ledger.lost_gpu_seconds


def _row(job: Job, now: datetime) -> tuple[str | Text, ...]:
    progress = job.status.progress
    reason = job.status.reason or ""
    return (
        job.name,
        Text(job.phase, style=phase_style(job.phase)),
        progress.steps if progress else "",
        (progress.loss_text or "") if progress else "",
        (progress.eta or "") if progress else "",
        f"{job.nodes}x{job.processes_per_node}" if job.on_gpus else f"{job.nodes}x{job.processes_per_node} cpu",
        amounts.hours(gpu_seconds(job)),
        str(job.status.restarts),
        amounts.since(job.created, now),
        "" if reason in _SHORT_REASONS else reason,
    )


def _because(job: Job) -> str:
    reason = job.status.reason
    return f" ({reason})" if reason and reason != job.phase else ""


def _compute(job: Job) -> str:
    what = "GPU" if job.on_gpus else "CPU process"
    each = amounts.plural(job.processes_per_node, what) if job.on_gpus else f"{job.processes_per_node} {what}"
    return f"{amounts.plural(job.nodes, 'node')} x {each}, {job.compute.get('backend', 'Job')}"


def _plan(job: Job) -> str:
    plan = job.status.plan
    if plan is None:
        return ""
    return (
        f"{plan.total_steps} steps of {plan.global_batch} sequences, {amounts.count(plan.tokens)} tokens an epoch, "
        f"{plan.precision}, sharding {plan.sharding}, about {amounts.size(plan.estimated_memory_bytes)} a process\n"
        f"{amounts.count(plan.trainable_parameters)} of {amounts.count(plan.parameters)} parameters are trained"
    )


def _progress(job: Job) -> str:
    progress = job.status.progress
    if progress is None:
        return ""
    share = progress.step / progress.total_steps if progress.total_steps else 0.0
    parts = [f"step {progress.steps} ({share:.0%})", f"epoch {progress.epoch}"]
    parts += [f"loss {progress.loss_text}"] if progress.loss_text else []
    parts += [f"{amounts.count(progress.tokens_per_second)} tokens/s"] if progress.tokens_per_second else []
    parts += [f"{progress.eta} left"] if progress.eta else []
    return ", ".join(parts)


def _checkpoint(job: Job, now: datetime) -> str:
    checkpoint = job.status.checkpoint
    if checkpoint is None:
        return ""
    ago = f", {amounts.since(checkpoint.time, now)} ago" if checkpoint.time else ""
    large = f", {amounts.size(checkpoint.bytes)}" if checkpoint.bytes else ""
    return f"step {checkpoint.step}{ago}{large}" + (f"\n{checkpoint.path}" if checkpoint.path else "")


def _attempts(job: Job, now: datetime) -> str:
    lines = []
    for attempt in job.status.attempts[-5:]:
        began = f"from step {attempt.resumed_from_step}" if attempt.resumed_from_step else "from the start"
        if attempt.ended is None:
            lines.append(f"{attempt.number}: {began}, for {amounts.since(attempt.started, now)}")
            continue
        lasted = amounts.since(attempt.started, datetime.fromisoformat(attempt.ended))
        lost = f", {attempt.steps_lost} steps lost" if attempt.steps_lost else ""
        lines.append(f"{attempt.number}: {began}, {attempt.reason} after {lasted}{lost}")
    return "\n".join(lines)


def _accounting(job: Job) -> str:
    ledger = job.status.accounting
    if ledger is None:
        return ""
    unit = "GPU-hours" if job.on_gpus else "process-hours"
    return (
        f"{amounts.hours(ledger.productive_gpu_seconds)} productive, {amounts.hours(ledger.lost_gpu_seconds)} lost, "
        f"{amounts.hours(ledger.starting_gpu_seconds)} starting, {amounts.hours(ledger.queued_gpu_seconds)} queued "
        f"({unit})"
    )


def _result(job: Job) -> str:
    result = job.status.result
    if result is None:
        return ""
    lines = [
        f"loss {result.first_loss:.3f} -> {result.final_loss:.3f} in {result.steps} steps",
        f"{result.adapter_path} on claim {job.shared_claim}",
        result.adapter_digest,
    ]
    export = result.export
    lines += [f"uploaded to {export.pushed_to}"] if export is not None and export.pushed_to else []
    return "\n".join(lines)


def _evaluation(job: Job) -> str:
    report = None if job.status.result is None else job.status.result.evaluation
    if report is None:
        return ""
    base, tuned = (scores.model_dump(by_alias=True, exclude_none=True) for scores in (report.base, report.tuned))
    lines = [
        f"{metric}: {base[metric]['value']:.3f} -> {tuned[metric]['value']:.3f}" for metric in base if metric in tuned
    ]
    return "\n".join([*lines, *(f"gate: {gate.condition}: {gate.found}" for gate in report.gate)])
