"""The page on the customer demo tells the steps that the script does."""

import yaml

from dev import tour
from finetune_operator.api.job import FineTuneJob
from tests.unit.docs.markdown import DOCS


def test_the_page_has_the_steps_of_the_script_with_their_minutes() -> None:
    page = (DOCS / "operator" / "demo.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| ") and "minute" not in line]
    assert [(int(minute), title.strip()) for minute, title in rows] == [(s.minute, s.title) for s in tour.STEPS]


def test_the_demo_takes_half_an_hour() -> None:
    minutes = [step.minute for step in tour.STEPS]
    assert minutes == sorted(minutes)
    assert minutes[-1] < 30


def test_its_job_is_one_that_the_operator_takes() -> None:
    assert FineTuneJob.parse(yaml.safe_load(yaml.safe_dump(tour.manifest()))).spec.run_policy.budget == "1000"
