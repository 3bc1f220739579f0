"""What `plan` shows: a run before it is started, and whether the cluster could take it."""

from rich.text import Text

from finetune_cli import amounts
from finetune_cli.capacity import Capacity, NodeFit
from finetune_cli.draw.columns import columns, facts
from finetune_cli.forecast import Forecast
from finetune_operator.plan import Plan


def draw_forecast(plan: Plan, forecast: Forecast) -> Text:
    """Return what a run would take."""
    spec, training = plan.job.spec, plan.job.spec.training
    most = "" if forecast.data.exact else "at most "
    pairs: list[tuple[str, str | Text]] = [
        ("Job", f"{plan.namespace}/{plan.name}"),
        ("Model", f"{plan.model}{_parameters(forecast)}"),
        ("Data", f"{most}{forecast.data.sequences:,} sequences an epoch ({forecast.data.basis})"),
        (
            "Steps",
            f"{most}{forecast.total_steps:,}: {amounts.plural(training.epochs, 'epoch')} x "
            f"{forecast.steps_per_epoch:,}, of {forecast.global_batch} sequences "
            f"({training.batch_size} x {training.gradient_accumulation} x {forecast.world_size}); "
            f"{forecast.warmup_steps} of warm-up",
        ),
        ("Tokens", f"{most}{amounts.count(forecast.total_tokens)} in the whole run"),
        ("Precision", f"{forecast.precision}{_kernels(forecast)}"),
        ("Sharding", forecast.sharding or ""),
        ("Memory", _memory(forecast)),
        ("Time", _time(forecast, most)),
        ("Cost", "" if forecast.cost is None else f"{most}{forecast.cost:,.2f} for the training"),
        ("Checkpoints", f"each {spec.checkpoint.every_steps} steps, {spec.checkpoint.keep} kept"),
        ("Decided", "\n".join(plan.reasons)),
        ("Notes", "\n".join(forecast.notes)),
    ]
    return facts(pairs)


def draw_capacity(capacity: Capacity, per_pod: int, *, on_gpus: bool) -> Text:
    """Return which nodes could take a pod of the job, and the sum of it."""
    wanted = amounts.plural(capacity.pods_wanted, "pod")
    each = f" of {amounts.plural(per_pod, 'GPU')}" if on_gpus else ""
    able = amounts.plural(len(capacity.able), "node")
    if capacity.fits_now:
        verdict = Text(f"{wanted}{each}: would start now", style="green")
    elif capacity.could_ever:
        verdict = Text(f"{wanted}{each}: would wait; {able} could take them when free", style="yellow")
    else:
        verdict = Text(f"{wanted}{each}: this cluster can never take them as they are", style="red")
    rows = [_node_row(node) for node in capacity.nodes]
    heads = ("node", "gpu", "free", "pods", "verdict")
    return Text.assemble(facts([("Cluster", verdict)]), "\n\n", columns(heads, rows))


def draw_problem(forecast: Forecast) -> Text:
    """Return why the job would fail before it holds a GPU."""
    return Text.assemble(("Cannot be trained so: ", "bold red"), forecast.will_not_fit or "")


def _node_row(node: NodeFit) -> tuple[str | Text, ...]:
    free = "?" if node.free_gpus is None else str(node.free_gpus)
    kind = f"{node.gpus} x {node.gpu.name}" if node.gpu is not None else str(node.gpus)
    if node.never is not None:
        verdict = Text(f"never: {node.never}", style="red")
    elif node.not_now is not None:
        verdict = Text(f"not now: {node.not_now}", style="yellow")
    else:
        verdict = Text("free", style="green")
    return node.name, kind, free if node.gpus else "-", str(node.pods_now), verdict


def _parameters(forecast: Forecast) -> str:
    if forecast.parameters is None or forecast.adapter_parameters is None:
        return ""
    return f" ({amounts.count(forecast.parameters)} parameters, {amounts.count(forecast.adapter_parameters)} trained)"


def _kernels(forecast: Forecast) -> str:
    if forecast.kernels is None:
        return ""
    recomputes = {True: ", activations computed again", False: "", None: ""}[forecast.recomputes]
    return f", {forecast.kernels} kernels{recomputes}"


def _memory(forecast: Forecast) -> str:
    if forecast.memory is None:
        return ""
    gpu = forecast.gpu
    of = f" of {amounts.size(gpu.memory_bytes)} ({gpu.name})" if gpu is not None and gpu.memory_bytes else ""
    return f"about {amounts.size(forecast.memory.total)}{of} a process\n{forecast.memory.describe()} (GiB)"


def _time(forecast: Forecast, most: str) -> str:
    if forecast.seconds is None or forecast.tokens_per_second is None or forecast.gpu_hours is None:
        return ""
    return (
        f"{most}about {amounts.duration(forecast.seconds)} at {amounts.count(forecast.tokens_per_second)} tokens/s: "
        f"{amounts.hours(forecast.gpu_hours * 3600)} GPU-hours"
    )
