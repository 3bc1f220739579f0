"""What pages call by name is there: series, alerts, panels of dashboards, reasons, commands with their options."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from dev.dashboards import DASHBOARDS
from dev.prometheus import POD_TARGET_LABELS
from finetune_cli.app import app
from finetune_operator.metrics import SERIES
from finetune_operator.names import ConditionReason
from finetune_trainer.contract import series
from finetune_trainer.contract.termination import Reason
from tests.unit.docs.markdown import DOCS, ROOT, blocks, pages, prose

MONITORING, RUNBOOKS = DOCS / "operator" / "monitoring.md", DOCS / "operator" / "runbooks.md"
RULES = yaml.safe_load((ROOT / "manifests" / "prometheus-rules.yaml").read_text(encoding="utf-8"))
ALERTS = {rule["alert"] for group in RULES["groups"] for rule in group["rules"]}
VALUES = yaml.safe_load((ROOT / "helm" / "finetune-operator" / "values.yaml").read_text(encoding="utf-8"))
PANELS = {panel.title for dashboard in DASHBOARDS.values() for panel in dashboard.panels}
REASONS = {str(reason) for reason in (*ConditionReason, *Reason)}

SERIES_NAMES = {*series.BY_NAME, *(one.name for one in SERIES)}
PACKAGES = {"finetune_operator", "finetune_trainer", "finetune_cli"}
# How Prometheus writes the labels of pods.
LABELS = {re.sub(r"\W", "_", label) for label in POD_TARGET_LABELS}
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

each_page = pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_a_series_that_a_page_names_is_one_that_is_served(page: Path) -> None:
    for name in set(re.findall(r"\bfinetune_[a-z_]+", page.read_text(encoding="utf-8"))) - PACKAGES - LABELS:
        assert name in SERIES_NAMES or re.sub(r"_(bucket|count|sum)$", "", name) in SERIES_NAMES, name


@each_page
def test_a_reason_that_a_page_names_is_one_that_a_status_can_have(page: Path) -> None:
    for name in re.findall(r"\breason `?([A-Z][A-Za-z]+)", prose(page)):
        assert name in REASONS, name


def test_the_page_on_monitoring_lists_every_alert_with_the_value_that_sets_its_limit() -> None:
    text = MONITORING.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (FineTune\w+) \|.*\| `(\w+)` \|$", text, re.MULTILINE))
    assert set(rows) == ALERTS
    assert set(rows.values()) == set(VALUES["prometheusRule"]["alerts"])
    for alert, value in rows.items():
        assert alert.lower() == f"finetune{value}".lower()


def test_a_panel_that_a_runbook_sends_a_person_to_is_on_a_dashboard() -> None:
    quoted = set(re.findall(r'"([^"]+)"', re.sub(r"`[^`]*`", "", RUNBOOKS.read_text(encoding="utf-8"))))
    assert quoted >= {"Free storage", "What a step's time goes to"}
    assert quoted <= PANELS


def _command_lines(page: Path) -> Iterator[str]:
    """Yield what a page shows of `kubectl finetune`, in its sentences and in its blocks."""
    # A table's cell has its pipes escaped.
    yield from re.findall(r"`kubectl finetune ([^`]+)`", prose(page).replace("\\|", "|"))
    for block in (*blocks("console"), *blocks("bash")):
        if block.page == page:
            yield from re.findall(r"^(?:\$ )?kubectl finetune (.+)$", block.text.replace("\\\n", " "), re.MULTILINE)


@each_page
def test_a_command_that_a_page_shows_is_there_with_the_options_that_it_is_given(page: Path) -> None:
    for line in _command_lines(page):
        name, *words = shlex.split(line, comments=True)
        if name.startswith("-") or name in ("COMMAND", "wat<TAB>"):
            continue
        assert name in COMMANDS, line
        options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        given = words[: words.index("--")] if "--" in words else words
        for word in given:
            assert not word.startswith("-") or word.partition("=")[0] in {*options, "--help"}, line


def test_commands_are_shown_in_the_way_that_is_looked_for() -> None:
    shown = {line.split()[0] for page in pages() for line in _command_lines(page)}
    assert set(COMMANDS) <= shown
