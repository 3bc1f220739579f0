"""The screen of `watch`, and the lines that take its place where there is no terminal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from finetune_cli import amounts
from finetune_cli.draw.columns import columns, phase_style
from finetune_cli.draw.shapes import bar, sparkline
from finetune_cli.jobs import Job
from finetune_cli.pods import PodView
from finetune_cli.readings import EventView, NodeReading
from finetune_operator.api.status import Phase
from finetune_operator.names import ConditionReason
from finetune_trainer.contract.termination import Reason

_EVENTS = 6
_NODES = 16
_LABEL = 12
_BAR = 40
_WELL_USED = 0.85
_GAP = 3  # of `columns`
_SHORTEST_MESSAGE = 20
_NO_RESTARTS = (ConditionReason.SUSPENDED, Reason.SUCCEEDED)  # reasons for which an attempt ends and nothing broke


@dataclass(frozen=True)
class Screen:
    """Everything that a screen is drawn from."""

    job: Job
    pods: tuple[PodView, ...] = ()
    """Those of the stage that is under way."""
    readings: Mapping[str, NodeReading] = field(default_factory=dict)
    """By pod."""
    losses: Mapping[int, float] = field(default_factory=dict)
    """By step."""
    events: tuple[EventView, ...] = ()
    trouble: str = ""
    """What keeps this screen from being current."""


def draw_watch(screen: Screen, now: datetime, width: int) -> Group:
    """Return the whole screen."""
    parts = [_title(screen, now), _explanation(screen), _progress(screen, width), _curve(screen, width)]
    parts += [_figures(screen, now), _nodes(screen), _evaluation(screen), _events(screen, now, width), _outcome(screen)]
    if screen.trouble:
        parts.append(Text(screen.trouble, style="yellow"))
    shown = [part for part in parts if part.plain]
    gaps = [1] * (len(shown) - 1) + [0]
    return Group(*(Padding(part, (0, 0, gap, 0)) for part, gap in zip(shown, gaps, strict=True)))


def describe_progress(screen: Screen) -> str:
    """Return where the job stands as one line, for a log."""
    job, progress = screen.job, screen.job.status.progress
    if job.status.phase is Phase.RUNNING and progress is not None:
        eta = f"  eta {progress.eta}" if progress.eta else ""
        return f"{job.phase}  step {progress.steps}  loss {progress.loss_text or '-'}{eta}"
    return f"{job.phase}  {job.explanation}" if job.explanation else job.phase


def describe_outcome(job: Job) -> str:
    """Return how the job ended, and what to do next."""
    status = job.status
    if status.phase is Phase.SUCCEEDED and status.result is not None:
        result = status.result
        return (
            f"Succeeded: loss {result.first_loss:.3f} -> {result.final_loss:.3f} in {result.steps} steps.\n"
            f"Next: kubectl finetune download {job.name} -n {job.namespace}"
        )
    if status.phase is Phase.FAILED:
        return (
            f"Failed ({status.reason}): {job.explanation}\nNext: kubectl finetune doctor {job.name} -n {job.namespace}"
        )
    return ""


def _title(screen: Screen, now: datetime) -> Text:
    job, status = screen.job, screen.job.status
    model = status.plan.model if status.plan else status.model or ""
    what = "GPU" if job.on_gpus else "CPU process"
    attempt = f"   attempt {status.attempts[-1].number}" if status.restarts and status.attempts else ""
    age = amounts.since(job.created, now)
    first = Text.assemble(
        (job.name, "bold"), "   ", (job.phase, f"bold {phase_style(job.phase)}".strip()), f"{attempt}   {age}"
    )
    second = f"{model.partition('@')[0]}   {job.nodes} x {amounts.plural(job.processes_per_node, what)}".strip()
    return Text("\n").join([first, Text(f"{second}   namespace {job.namespace}", style="dim")])


def _explanation(screen: Screen) -> Text:
    """Return what the job waits for; while it trains the figures tell more."""
    if screen.job.has_ended or screen.job.status.phase is Phase.RUNNING:
        return Text("")
    return Text(screen.job.explanation or "The operator has not looked at this job yet.")


def _progress(screen: Screen, width: int) -> Text:
    progress = screen.job.status.progress
    if progress is None or not progress.total_steps:
        return Text("")
    step = max(progress.step, *(reading.step or 0 for reading in screen.readings.values()), 0)
    ratio = step / progress.total_steps
    room = max(10, min(_BAR, width - _LABEL - 32))
    eta = f"   {progress.eta} left" if progress.eta else ""
    return Text.assemble(
        _label("step"),
        (bar(ratio, room), "cyan"),
        f"  {step}/{progress.total_steps}  {ratio:.0%}{eta}",
    )


def _curve(screen: Screen, width: int) -> Text:
    losses = [screen.losses[step] for step in sorted(screen.losses)]
    if not losses:
        return Text("")
    room = max(10, min(_BAR, width - _LABEL - 32))
    first, last = losses[0], losses[-1]
    ends = f"  {last:.4f}" if len(losses) == 1 else f"  {first:.4f} -> {last:.4f}"
    return Text.assemble(_label("loss"), (sparkline(losses, room), "magenta"), ends)


def _figures(screen: Screen, now: datetime) -> Text:
    status, lines = screen.job.status, []
    if progress := status.progress:
        parts = [f"{amounts.count(progress.tokens_per_second)} tokens/s"] if progress.tokens_per_second else []
        parts += [f"learning rate {progress.learning_rate:.1e}"] if progress.learning_rate is not None else []
        parts += [f"epoch {progress.epoch}"]
        lines.append(Text.assemble(_label("speed"), "   ".join(parts)))
    if checkpoint := status.checkpoint:
        ago = f", {amounts.since(checkpoint.time, now)} ago" if checkpoint.time else ""
        large = f", {amounts.size(checkpoint.bytes)}" if checkpoint.bytes else ""
        lines.append(Text.assemble(_label("checkpoint"), f"step {checkpoint.step}{ago}{large}"))
    if status.restarts:
        ended = [attempt for attempt in status.attempts if attempt.ended and attempt.reason not in _NO_RESTARTS]
        last = ended[-1] if ended else None
        why = f", the last one because of {last.reason}" if last is not None else ""
        lines.append(Text.assemble(_label("restarts"), (f"{status.restarts}{why}", "yellow")))
    return Text("\n").join(lines)


def _nodes(screen: Screen) -> Text:
    pods = screen.pods[:_NODES]
    if not pods or screen.job.has_ended:
        return Text("")
    with_gpus = any(reading.gpus for reading in screen.readings.values())
    heads = ["rank", "pod", "node", "state", *(["gpus", "utilisation", "memory"] if with_gpus else [])]
    rows = [_node(pod, screen.readings.get(pod.name), with_gpus=with_gpus) for pod in pods]
    more = len(screen.pods) - len(pods)
    table = columns(heads, rows)
    return Text.assemble(table, f"\n... and {amounts.plural(more, 'pod')} more") if more else table


def _node(pod: PodView, reading: NodeReading | None, *, with_gpus: bool) -> list[str | Text]:
    ranks = str(pod.ranks.start) if len(pod.ranks) == 1 else f"{pod.ranks.start}-{pod.ranks.stop - 1}"
    state = Text(pod.state, style="" if pod.running else "yellow")
    cells: list[str | Text] = [ranks, pod.name, pod.node or "-", state]
    if not with_gpus:
        return cells
    gpus = () if reading is None else reading.gpus
    used = [gpu.utilization for gpu in gpus if gpu.utilization is not None]
    if not used:
        return [*cells, "", "?", ""]
    mean = sum(used) / len(used)
    style = "green" if mean >= _WELL_USED else "yellow"
    each = Text("".join(_block(gpu.utilization) for gpu in gpus), style=style)
    memory = max((gpu.memory_bytes or 0 for gpu in gpus), default=0)
    return [*cells, each, Text.assemble((bar(mean, 12), style), f" {mean:.0%}"), amounts.size(memory)]


def _block(utilization: float | None) -> str:
    """Return a GPU as one character, the higher the busier."""
    if utilization is None:
        return "?"
    return "▁▂▃▄▅▆▇█"[round(min(max(utilization, 0.0), 1.0) * 7)]


def _evaluation(screen: Screen) -> Text:
    result = screen.job.status.result
    if result is None or result.evaluation is None:
        return Text("")
    base, tuned = (
        scores.model_dump(by_alias=True, exclude_none=True)
        for scores in (result.evaluation.base, result.evaluation.tuned)
    )
    rows = [
        (metric, f"{base[metric]['value']:.3f}", f"{tuned[metric]['value']:.3f}") for metric in base if metric in tuned
    ]
    return columns(("held out", "base", "tuned"), rows)


def _events(screen: Screen, now: datetime, width: int) -> Text:
    """Return the newest Events, each on one line."""
    if not screen.events:
        return Text("")
    events = screen.events[-_EVENTS:]
    ages = [amounts.since(event.time, now) for event in events]
    taken = sum(max(map(len, column)) + _GAP for column in (["ago", *ages], ["event", *(e.reason for e in events)]))
    rows = [
        (
            age,
            Text(event.reason, style="yellow" if event.kind == "Warning" else ""),
            _cut(event.message, max(width - taken, _SHORTEST_MESSAGE)),
        )
        for age, event in zip(ages, events, strict=True)
    ]
    return columns(("ago", "event", ""), rows)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _outcome(screen: Screen) -> Text:
    return Text(describe_outcome(screen.job), style=phase_style(screen.job.phase))


def _label(name: str) -> tuple[str, str]:
    return name.ljust(_LABEL), "bold"
