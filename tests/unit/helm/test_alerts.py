"""The alerts, tried by Prometheus' own promtool against played series."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
STORIES = Path(__file__).with_name("alerts.yaml")
RULES = yaml.safe_load((ROOT / "manifests" / "prometheus-rules.yaml").read_text(encoding="utf-8"))
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}


def test_each_alert_fires_when_it_should_and_at_no_other_time() -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is not there: `make cluster-programs` installs Debian's package prometheus"
    finished = subprocess.run([promtool, "test", "rules", str(STORIES)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_the_stories_see_each_alert_both_silent_and_firing(alert: str) -> None:
    stories = yaml.safe_load(STORIES.read_text(encoding="utf-8"))["tests"]
    looks = [look for story in stories for look in story["alert_rule_test"] if look["alertname"] == alert]
    assert any(look.get("exp_alerts") for look in looks)
    assert any(not look.get("exp_alerts") for look in looks)


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_leads_to_a_chapter_of_the_runbooks_that_says_what_to_do(alert: str) -> None:
    page, _, anchor = ALERTS[alert]["annotations"]["runbook_url"].partition("#")
    chapters = re.split(r"^## ", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    (chapter,) = [text for text in chapters if text.splitlines()[0].lower() == anchor]
    assert chapter.splitlines()[0] == alert
    for question in ("**What it means.**", "**Look at.**", "**Do.**"):
        assert question in chapter


def test_every_alert_says_how_urgent_it_is() -> None:
    assert {rule["labels"]["severity"] for rule in ALERTS.values()} == {"critical", "warning"}
