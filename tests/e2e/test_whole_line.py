"""One job, from `kubectl apply` to its adapter, looked at from every side while a Prometheus scrapes it.

The operator is restarted in the middle of the run: everything below holds all the same, whichever back-end trains.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.image_build import TRAINER
from dev.prometheus import running_prometheus
from tests.e2e.jobs import Reader, start_reader, tiny_job
from tests.e2e.kubectl import JobView, Kubectl, fresh_namespace

pytestmark = pytest.mark.e2e

NAME = "whole-line"
# What the pod of rank 0 is called in each back-end.
RANK_ZERO = {"Job": f"{NAME}-a1-leader", "PyTorchJob": f"{NAME}-a1-master"}


@dataclass(frozen=True)
class Run:
    """What was seen of one run."""

    backend: str
    kubectl: Kubectl
    job: JobView
    table_while_running: str
    wide_table_at_the_end: str
    pods_before_restart: dict[str, str]
    pods_after_restart: dict[str, str]
    claims_by_pod: dict[str, set[str]]
    loss_series: list[dict[str, Any]]
    step_series: list[dict[str, Any]]
    reader: Reader


@pytest.fixture(scope="module", params=["Job", "PyTorchJob"])
def run(request: pytest.FixtureRequest, operator: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with fresh_namespace(operator) as kubectl:
        yield _run(request.param, kubectl, operator, tmp_path_factory)


def _run(backend: str, kubectl: Kubectl, operator: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("prometheus")
    with running_prometheus(directory) as prometheus:
        kubectl.apply(tiny_job(NAME, compute__backend=backend, training__epochs=20, training__maxStepsPerEpoch=4))
        kubectl.wait_for_job(NAME, lambda job: job.step >= 2)
        prometheus.scrape(kubectl.items("pods", "finetune.dev/stage=train"))
        table = kubectl.run("get", "finetunejobs")
        before = _training_pods(kubectl)
        operator.run("rollout", "restart", "deployment/finetune-operator")
        operator.run("rollout", "status", "deployment/finetune-operator", "--timeout=90s", timeout_seconds=120)
        after = _training_pods(kubectl)
        pods = kubectl.items("pods", "finetune.dev/stage=train")
        job = kubectl.wait_for_job(NAME, lambda job: job.phase == "Succeeded")
        loss = prometheus.query(f'last_over_time(finetune_loss{{namespace="{kubectl.namespace}"}}[10m])')
        step = prometheus.query(f'max_over_time(finetune_step{{namespace="{kubectl.namespace}"}}[10m])')
    claims = {f"/mnt/{kind}": f"{NAME}-{kind}" for kind in ("shared", "network")}
    reader = start_reader(kubectl, TRAINER.reference(), claims)
    return Run(
        backend=backend,
        kubectl=kubectl,
        job=job,
        table_while_running=table,
        wide_table_at_the_end=kubectl.run("get", "finetunejobs", "--output", "wide"),
        pods_before_restart=before,
        pods_after_restart=after,
        claims_by_pod={pod["metadata"]["name"]: _claims(pod) for pod in pods},
        loss_series=loss,
        step_series=step,
        reader=reader,
    )


def test_the_status_has_the_plan_and_the_result(run: Run) -> None:
    plan, result = run.job.status["plan"], run.job.status["result"]
    assert plan["worldSize"] == 2
    assert plan["globalBatch"] == 4
    assert plan["totalSteps"] == 80
    assert plan["datasets"][0]["rowsRead"] == 60
    assert re.fullmatch(r"finetune-operator/tiny-random-llama@[0-9a-f]{40}", plan["model"])
    assert result["steps"] == 80
    assert result["finalLoss"] < result["firstLoss"]


def test_every_condition_says_how_it_ended(run: Run) -> None:
    assert {kind: run.job.condition(kind)["status"] for kind in ("Accepted", "Prepared", "Running", "Complete")} == {
        "Accepted": "True",
        "Prepared": "True",
        "Running": "False",
        "Complete": "True",
    }


def test_kubectl_get_shows_how_far_the_training_is(run: Run) -> None:
    header, row = run.table_while_running.splitlines()
    assert header.split() == ["NAME", "PHASE", "STEP", "LOSS", "ETA", "RESTARTS", "AGE"]
    name, phase, step, loss, *_ = row.split()
    assert (name, phase) == (NAME, "Running")
    assert re.fullmatch(r"\d+/80", step)
    assert float(loss) > 0


def test_kubectl_get_wide_shows_model_nodes_and_throughput(run: Run) -> None:
    header, row = run.wide_table_at_the_end.splitlines()
    for column in ("MODEL", "NODES", "TOKENS/S", "CHECKPOINT", "REASON"):
        assert column in header
    assert "finetune-operator/tiny-random-llama" in row
    assert "80/80" in row


def test_restarting_the_operator_in_the_middle_of_a_run_changes_nothing_in_the_run(run: Run) -> None:
    assert len(run.pods_before_restart) == 2
    assert run.pods_after_restart == run.pods_before_restart
    assert run.job.status.get("restarts", 0) == 0
    assert len(run.job.status["attempts"]) == 1


def test_prometheus_has_the_loss_and_the_step_of_rank_zero_alone(run: Run) -> None:
    (pod,) = [series["metric"]["pod"] for series in run.step_series]
    assert pod.startswith(f"{RANK_ZERO[run.backend]}-0")
    # The last scrape is a second or two before the end, and a step takes a tenth of one.
    assert 20 < float(run.step_series[0]["value"][1]) <= 80
    assert 0 < float(run.loss_series[0]["value"][1]) < run.job.status["result"]["firstLoss"]


def test_only_the_leader_mounts_a_disk_that_one_node_alone_can_hold(run: Run) -> None:
    shared, network = f"{NAME}-shared", f"{NAME}-network"
    is_leader = {pod: pod.startswith(RANK_ZERO[run.backend]) for pod in run.claims_by_pod}
    assert sorted(is_leader.values()) == [False, True]
    for pod, claims in run.claims_by_pod.items():
        assert claims == ({shared, network} if is_leader[pod] else {shared})


def test_the_log_files_are_on_the_network_disk(run: Run) -> None:
    directory = f"/mnt/network/{run.kubectl.namespace}/{NAME}/{run.job.body['metadata']['uid']}"
    assert {f"{directory}/training.log", f"{directory}/metrics.jsonl"} <= set(run.reader.list_files(directory))
    lines = [json.loads(line) for line in run.reader.text(f"{directory}/metrics.jsonl").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 81))


def test_peft_loads_the_adapter_onto_the_base_model_and_the_answer_changes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Here, because every process that runs tests beside others reads all files first.
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    # NB: this PEFT raises where it finds a torchao older than 0.16; torchtune 0.6.1 imports with none newer than 0.15.
    monkeypatch.setattr("peft.tuners.lora.torchao.is_torchao_available", lambda: False)
    result, plan = run.job.status["result"], run.job.status["plan"]
    adapter = f"/mnt/shared/{result['adapterPath']}"
    assert result["adapterDigest"] == f"sha256:{run.reader.sha256(f'{adapter}/adapter_model.safetensors')}"
    run.reader.copy(adapter, tmp_path / "adapter")
    run.reader.copy(f"/mnt/shared/{plan['modelPath']}", tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    tokens = torch.arange(20, 40).unsqueeze(0)
    with torch.no_grad():
        before = base(tokens).logits
        after = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))(tokens).logits
    assert (after - before).abs().max() > 0.01


def test_the_events_tell_the_story_in_order(run: Run) -> None:
    reasons = [event.split(":")[0] for event in run.kubectl.events(NAME)]
    expected = ["Accepted", "Prepared", "Running", "Succeeded"]
    assert [reason for reason in reasons if reason in expected] == expected


def test_deleting_the_job_keeps_its_claims_and_nothing_else(run: Run) -> None:
    run.kubectl.run("delete", "pod", "reader")
    run.kubectl.run("delete", "finetunejob", NAME)
    run.kubectl.wait_until(
        "children are gone",
        lambda: (
            not any(
                run.kubectl.items(kind, f"finetune.dev/job={NAME}")
                for kind in ("jobs", "pytorchjobs", "pods", "services", "configmaps")
            )
        ),
    )
    claims = run.kubectl.items("persistentvolumeclaims")
    assert {claim["metadata"]["name"] for claim in claims} == {f"{NAME}-shared", f"{NAME}-network"}


def _training_pods(kubectl: Kubectl) -> dict[str, str]:
    pods = kubectl.items("pods", "finetune.dev/stage=train")
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}


def _claims(pod: dict[str, Any]) -> set[str]:
    return {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
