"""What a person looks up is in the pages: every reason that a status can have, every series that can be scraped."""

import re
from pathlib import Path

import pytest

from finetune_operator.metrics import Metrics
from finetune_operator.names import ConditionReason
from finetune_trainer.contract import series
from finetune_trainer.contract.termination import Reason

TROUBLESHOOTING = Path("docs/user/troubleshooting.md").read_text(encoding="utf-8")
FIELDS = Path("docs/reference/finetunejob.md").read_text(encoding="utf-8")
METRICS = Path("docs/reference/metrics.md").read_text(encoding="utf-8")

ALL_IS_WELL = {
    *(
        "Accepted",
        "Preparing",
        "Prepared",
        "Starting",
        "Running",
        "Suspending",
        "Resumed",
        "Trained",
        "Evaluating",
        "Evaluated",
    ),
    *("CheckpointLoaded", "Succeeded", "StorageSuffices"),
}
TROUBLES = sorted({reason.value for reason in (*ConditionReason, *Reason)} - ALL_IS_WELL)
SERIES = sorted(value for name, value in vars(series).items() if name.isupper() and str(value).startswith("finetune_"))


@pytest.mark.parametrize(
    "bounds",
    [
        "`spec.training.optimizer.learningRate` | number > 0, <= 1 |",
        "`spec.lora.dropout` | number >= 0, < 1 |",
        "`spec.training.seed` | integer >= 0, <= 4,294,967,295 |",
        "`spec.compute.resources.limits` | map of quantity |",
        "`spec.storage.shared.size` | quantity |",
        "`spec.runPolicy.budget` | amount |",
    ],
)
def test_the_bounds_of_a_field_are_told_as_they_are(bounds: str) -> None:
    assert bounds in FIELDS


@pytest.mark.parametrize("reason", TROUBLES)
def test_every_reason_to_worry_is_explained(reason: str) -> None:
    table = "".join(line.split("|")[1] for line in TROUBLESHOOTING.splitlines() if line.startswith("|"))
    assert reason in table.replace(",", " ").split()


ROWS = [line.split("|") for line in TROUBLESHOOTING.splitlines() if line.startswith("| ") and "`tests/" in line]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1].strip())
def test_each_reason_is_brought_about_by_the_test_that_its_row_names(row: list[str]) -> None:
    text = Path(row[-2].strip(" `")).read_text(encoding="utf-8")
    for reason in row[1].replace(",", " ").split():
        constants = [member.name for member in (*ConditionReason, *Reason) if member.value == reason]
        assert any(word in text for word in (reason, *(f"Reason.{name}" for name in constants))), reason


def test_every_row_of_the_table_of_reasons_names_its_test() -> None:
    assert len(ROWS) > 40
    assert len(ROWS) == sum(line.startswith("| ") for line in TROUBLESHOOTING.splitlines()) - 1


@pytest.mark.parametrize("name", SERIES)
def test_every_series_of_the_trainer_is_listed_with_its_meaning(name: str) -> None:
    assert name in series.BY_NAME
    assert re.search(rf"^\| `{name}(?:{{[a-z_,]+}})?` \| \w+ \| .{{2,}} \|$", METRICS, flags=re.MULTILINE)


def test_no_series_is_listed_that_has_no_name_in_the_contract() -> None:
    assert sorted(series.BY_NAME) == SERIES
    assert len(series.BY_NAME) == len(series.OF_RANK_ZERO) + len(series.OF_NODE)


def test_every_metric_of_the_operator_is_listed_and_nothing_else() -> None:
    metrics = Metrics()
    metrics.watch_queue(lambda: 0, lambda: 0)
    metrics.watch_phases(list)
    metrics.watch_storage(lambda: 0)
    families = [line.split()[2] for line in metrics.exposition().decode().splitlines() if line.startswith("# TYPE")]
    own = {name for name in families if name.startswith("finetune_operator_") and not name.endswith("_created")}
    listed = re.findall(r"^\| `(finetune_operator_\w+)", METRICS, flags=re.MULTILINE)
    assert len(listed) == len(set(listed)) >= 16
    assert set(listed) == own
