"""Dashboards and alerts against a real Prometheus that scrapes a real run, its operator, and a job that fails.

One gang of two nodes trains; for a while its second process is frozen, so that the first waits for it in vain.
"""

import math
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cluster import layout
from dev.dashboards import DASHBOARDS
from dev.dashboards.panels import Panel
from dev.deploy import CHART
from dev.prometheus import POD_TARGET_LABELS, Prometheus, running_prometheus
from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl

pytestmark = pytest.mark.e2e

NAME, HOPELESS = "watched", "hopeless"
TRAIN = f"finetune.dev/job={NAME},finetune.dev/stage=train"
# Alerts as the chart makes them, but so impatient that a test need not wait for a quarter of an hour.
IMPATIENT = {
    "stalled": {"for": "0s", "seconds": 5},
    "checkpointTooOld": {"for": "0s", "intervals": 0.3},
}
MUST_FIRE = {"FineTuneJobFailed", "FineTuneStalled", "FineTuneCheckpointTooOld"}
PANELS = [(page, panel) for page, dashboard in DASHBOARDS.items() for panel in dashboard.panels]
ON_ANY_CLUSTER = {f"{page}: {panel.title}": panel for page, panel in PANELS if not panel.needs_gpu}
# What a job has cost is known at its end; until then these show that it has cost nothing.
ABOUT_MONEY = ("fleet: Cost by namespace", "fleet: Lost share", "fleet: Productive and lost cost, by namespace")
# Sends a signal to the processes that train: the children of the agent, which is the container's first process.
SIGNAL = """
import os, pathlib, sys
agents = [int(path.parent.name) for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")
          if b"finetune_trainer\\0train" in path.read_bytes()]
for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    fields = path.read_text().rpartition(")")[2].split()
    if int(fields[1]) in agents and b"spawn_main" in (path.parent / "cmdline").read_bytes():
        os.kill(int(path.parent.name), int(sys.argv[1]))
        print("signalled", path.parent.name)
"""
STOP, CONTINUE = "19", "18"


@dataclass
class Seen:
    """What was seen of the run."""

    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What each query gave, by page and panel."""
    fired: set[str] = field(default_factory=set)
    fired_before_the_freeze: set[str] = field(default_factory=set)
    fires_after_the_thaw: set[str] = field(default_factory=set)


def _rules(directory: Path) -> Path:
    """Render the alerts with helm, as an administrator who tunes them would."""
    values = {"prometheusRule": {"enabled": True, "alerts": IMPATIENT}}
    command = [str(layout.binary("helm")), "template", "finetune-operator", str(CHART), "--kube-version", "1.34"]
    command += ["--show-only", "templates/prometheusrule.yaml", "--values", "-"]
    rendered = subprocess.run(command, input=yaml.safe_dump(values), capture_output=True, text=True, check=True).stdout
    file = directory / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": yaml.safe_load(rendered)["spec"]["groups"]}))
    return file


@pytest.fixture(scope="module")
def seen(module_namespace: Kubectl, operator: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    kubectl, directory = module_namespace, tmp_path_factory.mktemp("prometheus")
    with running_prometheus(directory, _rules(directory)) as prometheus:
        yield _watch(kubectl, operator, prometheus)


def _watch(kubectl: Kubectl, operator: Kubectl, prometheus: Prometheus) -> Seen:
    seen = Seen()
    operators = operator.items("pods", "app.kubernetes.io/name=finetune-operator")
    prometheus.scrape(operators)
    kubectl.wait_until("the operator is scraped", lambda: bool(prometheus.query("finetune_operator_ready")))
    training = {"epochs": 100, "maxStepsPerEpoch": 4, "schedule": {"warmupSteps": 1}}
    changes = {f"training__{name}": value for name, value in training.items()}
    kubectl.apply(
        tiny_job(HOPELESS, compute__nodes=1, model__huggingFace__repository="finetune-operator/no-such-model"),
        tiny_job(NAME, checkpoint__everySteps=100, **changes),
    )
    kubectl.wait_for_job(NAME, lambda job: job.step >= 2)
    pods = kubectl.items("pods", TRAIN)
    prometheus.scrape([*operators, *pods])

    def fires(*alerts: str) -> bool:
        firing = prometheus.firing()
        seen.fired |= firing
        return firing >= set(alerts)

    kubectl.wait_until("the failed job is told", lambda: fires("FineTuneJobFailed"), timeout_seconds=90)
    kubectl.wait_until("an old checkpoint is told", lambda: fires("FineTuneCheckpointTooOld"), timeout_seconds=90)
    seen.fired_before_the_freeze = set(seen.fired)
    (worker,) = [pod["metadata"]["name"] for pod in pods if pod["metadata"]["labels"]["finetune.dev/role"] == "worker"]
    _signal(kubectl, worker, STOP)
    try:
        kubectl.wait_until("the standstill is told", lambda: fires("FineTuneStalled"), timeout_seconds=60)
    finally:
        _signal(kubectl, worker, CONTINUE)
    kubectl.wait_until("it is taken back", lambda: "FineTuneStalled" not in prometheus.firing(), timeout_seconds=60)
    seen.fires_after_the_thaw = prometheus.firing()
    _ask_until_all_answer(kubectl, prometheus, seen, ("run", "fleet"), "the pages show the run", must=("run",))
    kubectl.wait_for_job(NAME, lambda job: job.phase == "Succeeded")
    _ask_until_all_answer(kubectl, prometheus, seen, ("fleet",), "the page Fleet shows its end", must=("fleet",))
    charged = f'finetune_operator_cost_total{{job_namespace="{kubectl.namespace}", kind="productive"}} > 0'
    kubectl.wait_until("its steps are charged", lambda: bool(prometheus.query(charged)), timeout_seconds=30)
    seen.answers |= {name: _ask(prometheus, ON_ANY_CLUSTER[name], kubectl.namespace) for name in ABOUT_MONEY}
    return seen


def _signal(kubectl: Kubectl, pod: str, signal: str) -> None:
    assert "signalled" in kubectl.run("exec", pod, "--", "python3", "-c", SIGNAL, signal)


def _ask_until_all_answer(
    kubectl: Kubectl, prometheus: Prometheus, seen: Seen, pages: tuple[str, ...], what: str, must: tuple[str, ...]
) -> None:
    """Ask the queries of some pages that have not answered yet, until those of the pages `must` all have."""

    def all_answer() -> bool:
        for name, panel in ON_ANY_CLUSTER.items():
            if name.partition(":")[0] in pages and not _has_data(seen.answers.get(name, [])):
                seen.answers[name] = _ask(prometheus, panel, kubectl.namespace)
        return all(_has_data(answers) for name, answers in seen.answers.items() if name.partition(":")[0] in must)

    try:
        kubectl.wait_until(what, all_answer, timeout_seconds=45)
    except AssertionError:
        return  # the tests below say which


def _ask(prometheus: Prometheus, panel: Panel, namespace: str) -> list[dict[str, Any]]:
    """Ask all queries of a panel as Grafana would; one that has no answer stands for the panel."""
    answers = []
    for query in panel.queries:
        expression = query.expression
        chosen = {"$namespace": namespace, "$job": NAME, "$__rate_interval": "20s", "$__range": "10m"}
        for variable, value in chosen.items():
            expression = expression.replace(variable, value)
        series = prometheus.query(expression)
        if not _has_data(series):
            return []
        answers += series
    return answers


def _has_data(series: list[dict[str, Any]]) -> bool:
    return any(math.isfinite(float(found["value"][1])) for found in series)


@pytest.mark.parametrize("name", ON_ANY_CLUSTER)
def test_every_query_of_a_dashboard_finds_data_of_a_real_run(seen: Seen, name: str) -> None:
    assert _has_data(seen.answers[name]), [query.expression for query in ON_ANY_CLUSTER[name].queries]


def test_only_panels_about_gpus_are_left_to_played_series() -> None:
    assert [panel.title for _, panel in PANELS if panel.needs_gpu] == [
        "Model FLOPs utilisation (MFU)",
        "GPU utilisation",
        "GPU memory in use",
    ]


def test_the_curves_say_what_they_are_of(seen: Seen) -> None:
    phases = {series["metric"]["phase"] for series in seen.answers["run: What a step's time goes to"]}
    assert phases == {"data", "compute", "communication", "wait", "checkpoint"}
    processes = {
        (series["metric"]["node_rank"], series["metric"]["local_rank"])
        for series in seen.answers["run: Compute of each process"]
    }
    assert processes == {("0", "0"), ("1", "0")}
    filesystems = {series["metric"]["filesystem"] for series in seen.answers["run: Free storage"]}
    assert filesystems == {"shared", "network"}
    reasons = {series["metric"]["reason"] for series in seen.answers["fleet: Jobs that failed for good, by reason"]}
    assert reasons == {"ModelUnavailable"}


def test_what_was_spent_is_told_by_namespace_and_by_what_became_of_it(seen: Seen, module_namespace: Kubectl) -> None:
    spent = {
        (series["metric"]["job_namespace"], series["metric"]["kind"], series["metric"]["currency"]): float(
            series["value"][1]
        )
        for series in seen.answers["fleet: Productive and lost cost, by namespace"]
    }
    here = module_namespace.namespace
    assert set(spent) >= {(here, "productive", "USD"), (here, "lost", "USD")}
    assert spent[here, "productive", "USD"] > spent[here, "lost", "USD"] >= 0
    by_namespace = {series["metric"]["job_namespace"] for series in seen.answers["fleet: Cost by namespace"]}
    assert here in by_namespace


def test_three_alerts_fire_for_real_and_the_standstill_is_told_only_while_it_lasts(seen: Seen) -> None:
    assert seen.fired >= MUST_FIRE
    assert "FineTuneStalled" not in seen.fired_before_the_freeze
    assert "FineTuneStalled" not in seen.fires_after_the_thaw


def test_no_alert_fires_that_nobody_caused(seen: Seen) -> None:
    # A small shared disk may well be nearly full, and two processes on two shared cores are never equally fast.
    of_the_machine = {"FineTuneStorageNearlyFull", "FineTuneStragglerRank"}
    assert seen.fired - of_the_machine <= MUST_FIRE


def test_the_labels_are_those_that_the_charts_pod_monitor_takes_over() -> None:
    monitor = (CHART / "templates" / "podmonitor.yaml").read_text(encoding="utf-8")
    assert f"podTargetLabels: [{', '.join(POD_TARGET_LABELS)}]" in monitor
