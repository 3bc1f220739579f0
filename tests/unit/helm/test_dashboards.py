"""The dashboards' queries: that they can be read, that their series exist, and that they find GPUs."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.metrics import Metrics
from finetune_trainer.contract import series

FILES = Path(__file__).resolve().parents[3] / "helm" / "finetune-operator" / "files" / "dashboards"
PAGES: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in sorted(FILES.glob("*.json"))}
PANELS = {f"{page}: {panel['title']}": panel for page, body in PAGES.items() for panel in body["panels"]}
QUERIES = {
    f"{name} {target['refId']}": target["expr"] for name, panel in PANELS.items() for target in panel.get("targets", [])
}
# https://github.com/NVIDIA/dcgm-exporter/blob/main/etc/default-counters.csv
DCGM = {"DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED"}
GIBIBYTE = 1 << 30


def filled_in(query: str) -> str:
    """Return a query as Grafana sends it."""
    for variable, value in {"namespace": "team-a", "job": "calls", "__rate_interval": "4m", "__range": "1h"}.items():
        query = query.replace(f"${variable}", value)
    return query


def promtool(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = shutil.which("promtool")
    assert program, "promtool is not there: `make cluster-programs` installs Debian's package prometheus"
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"query_{index}", "expr": filled_in(query)} for index, query in enumerate(QUERIES.values())]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    finished = promtool("check", "rules", str(file))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert len(rules) > 35


def test_every_series_that_is_asked_for_is_one_that_somebody_exports() -> None:
    metrics = Metrics()
    metrics.watch_queue(lambda: 0, lambda: 0)
    metrics.watch_phases(list)
    metrics.watch_storage(lambda: 0)
    lines = metrics.exposition().decode().splitlines()
    exported = {line.split()[2] for line in lines if line.startswith("# TYPE")} | DCGM
    exported |= {value for name, value in vars(series).items() if name.isupper() and isinstance(value, str)}
    asked = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for query in QUERIES.values()
        for name in re.findall(r"\b(?:finetune_(?!dev_job)\w+|DCGM_\w+)", query)
    }
    assert asked <= exported
    assert len(asked) > 30


@pytest.mark.parametrize("name", PANELS)
def test_every_panel_says_what_it_shows_and_in_which_unit(name: str) -> None:
    panel = PANELS[name]
    if panel["type"] == "row":
        assert panel["title"]
        return
    assert len(panel["description"]) > 10
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("page", PAGES)
def test_panels_have_numbers_of_their_own_and_stay_within_the_page(page: str) -> None:
    panels = PAGES[page]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


LABELS = 'namespace="team-a",finetune_dev_job="calls"'
NODES = {
    f'{series.NODE_INFO}{{{LABELS},pod="calls-0",node_rank="0"}}': "1x10",
    f'{series.NODE_INFO}{{{LABELS},pod="calls-1",node_rank="1"}}': "1x10",
}
NVML = {
    f'{series.GPU_UTILIZATION_RATIO}{{{LABELS},pod="calls-0",gpu="0"}}': "0.91x10",
    f'{series.GPU_UTILIZATION_RATIO}{{{LABELS},pod="calls-1",gpu="0"}}': "0.92x10",
    f'{series.GPU_MEMORY_USED_BYTES}{{{LABELS},pod="calls-0",gpu="0"}}': f"{40 * GIBIBYTE}x10",
    f'{series.GPU_MEMORY_USED_BYTES}{{{LABELS},pod="calls-1",gpu="0"}}': f"{41 * GIBIBYTE}x10",
}
# dcgm-exporter runs on the second node alone, with the labels of the pod that holds a GPU (honorLabels).
OF_DCGM = {
    'DCGM_FI_DEV_GPU_UTIL{namespace="team-a",pod="calls-1",gpu="0",UUID="GPU-1",modelName="NVIDIA H100"}': "97x10",
    'DCGM_FI_DEV_FB_USED{namespace="team-a",pod="calls-1",gpu="0",UUID="GPU-1",modelName="NVIDIA H100"}': "60000x10",
    'DCGM_FI_DEV_GPU_UTIL{namespace="team-b",pod="notebook",gpu="0",UUID="GPU-2",modelName="NVIDIA H100"}': "5x10",
}
MFU = {f'{series.MODEL_FLOPS_UTILIZATION_RATIO}{{{LABELS},pod="calls-0"}}': "0.43x10"}
ON_GPUS = {
    "run: GPU utilisation A": {0: 0.91, 1: 0.97},
    "run: GPU memory in use A": {0: 40 * GIBIBYTE, 1: 60000 * (1 << 20)},
}


@pytest.mark.parametrize("name", ON_GPUS)
def test_a_gpu_is_seen_through_dcgm_where_it_is_and_through_nvml_where_it_is_not(name: str, tmp_path: Path) -> None:
    expected = [{"labels": f'{{node_rank="{node}", gpu="0"}}', "value": value} for node, value in ON_GPUS[name].items()]
    assert_gives(tmp_path, QUERIES[name], NODES | NVML | OF_DCGM, expected)


def test_the_mfu_is_seen_where_it_is_known(tmp_path: Path) -> None:
    query = QUERIES["run: Model FLOPs utilisation (MFU) A"]
    assert_gives(tmp_path, query, MFU, [{"labels": "{}", "value": 0.43}])


# Two teams, a scrape each minute; nothing was charged at first, so that all of it is growth.
COSTS = {
    'finetune_operator_cost_total{job_namespace="team-a",kind="productive",currency="USD"}': "0+12x20",
    'finetune_operator_cost_total{job_namespace="team-a",kind="lost",currency="USD"}': "0+4x20",
    'finetune_operator_cost_total{job_namespace="team-a",kind="storage",currency="USD"}': "0+0x20",
    'finetune_operator_cost_total{job_namespace="team-b",kind="productive",currency="USD"}': "0+4x20",
    'finetune_operator_cost_total{job_namespace="team-b",kind="lost",currency="USD"}': "0+0x20",
}
ON_MONEY = {
    "fleet: Productive and lost cost, by namespace A": {
        '{job_namespace="team-a", kind="productive", currency="USD"}': 60,
        '{job_namespace="team-a", kind="lost", currency="USD"}': 20,
        '{job_namespace="team-b", kind="productive", currency="USD"}': 20,
        '{job_namespace="team-b", kind="lost", currency="USD"}': 0,
    },
    "fleet: Lost share A": {'{currency="USD"}': 0.2},
}


@pytest.mark.parametrize("name", ON_MONEY)
def test_what_jobs_cost_is_seen_by_namespace_and_by_what_became_of_it(name: str, tmp_path: Path) -> None:
    expected = [{"labels": labels, "value": value} for labels, value in ON_MONEY[name].items()]
    assert_gives(tmp_path, QUERIES[name], COSTS, expected)


def test_a_namespace_is_charged_with_all_that_its_jobs_cost_over_the_time_shown(tmp_path: Path) -> None:
    query = QUERIES["fleet: Cost by namespace A"]
    expected = [  # after five minutes, all of which are in the hour that is shown
        {"labels": '{job_namespace="team-a", currency="USD"}', "value": 80},
        {"labels": '{job_namespace="team-b", currency="USD"}', "value": 20},
    ]
    assert_gives(tmp_path, query, COSTS, expected)


def assert_gives(directory: Path, query: str, played: dict[str, str], expected: list[dict[str, Any]]) -> None:
    """Ask Prometheus' own engine for a query over played series."""
    (directory / "rules.yaml").write_text("groups: []\n")
    story = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in played.items()],
        "promql_expr_test": [{"expr": filled_in(query), "eval_time": "5m", "exp_samples": expected}],
    }
    (directory / "story.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [story]}))
    finished = promtool("test", "rules", str(directory / "story.yaml"))
    assert finished.returncode == 0, finished.stdout + finished.stderr
