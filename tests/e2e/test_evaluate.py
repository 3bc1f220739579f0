"""The last stage on a real cluster: what was trained is scored, judged and exported before the job is called done."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from dev.cluster.image_build import TRAINER
from tests.command_line import CommandLine
from tests.e2e.jobs import start_reader, tiny_job
from tests.e2e.kubectl import JobView, Kubectl

pytestmark = [pytest.mark.e2e, pytest.mark.beside]

SHARED = "/mnt/shared"
# A tiny random model calls nothing, and its loss is that of guessing: about the logarithm of its vocabulary.
MET = {"loss": "<= 100"}
NOT_MET = {"functionAccuracy": ">= 0.99"}


@pytest.fixture(scope="module")
def jobs(module_namespace: Kubectl) -> Kubectl:
    """kubectl beside two jobs of one node that differ in what is asked of them."""
    for name, gate in (("good-enough", MET), ("not-good-enough", NOT_MET)):
        evaluation = {"holdout": {"share": 0.2}, "maxTurns": 8, "maxNewTokens": 16, "gate": gate}
        export = {"merged": True} if gate is MET else {}
        module_namespace.apply(tiny_job(name, compute__nodes=1, evaluation=evaluation, export=export))
    return module_namespace


def _ended(jobs: Kubectl, name: str) -> JobView:
    jobs.wait_until(f"{name} has ended", lambda: jobs.job(name).phase in ("Succeeded", "Failed"), timeout_seconds=300)
    return jobs.job(name)


def test_a_job_that_meets_its_gate_succeeds_and_tells_what_base_and_tuned_model_reach(jobs: Kubectl) -> None:
    job = _ended(jobs, "good-enough")
    assert job.phase == "Succeeded", jobs.story("good-enough")
    assert job.condition("Evaluated")["status"] == "True"
    evaluation = job.status["result"]["evaluation"]
    assert evaluation["gateMet"]
    assert evaluation["gate"][0]["condition"] == "loss <= 100"
    assert 0 < evaluation["tuned"]["loss"]["value"] < evaluation["base"]["loss"]["value"]
    reasons = [event.partition(":")[0] for event in jobs.events("good-enough")]
    assert reasons[-4:] == ["Trained", "Evaluating", "Evaluated", "Succeeded"]


def test_the_report_the_model_card_and_the_merged_model_lie_on_the_shared_filesystem(jobs: Kubectl) -> None:
    result = _ended(jobs, "good-enough").status["result"]
    reader = start_reader(jobs, TRAINER.reference(), {SHARED: "good-enough-shared"})
    report = json.loads(reader.text(f"{SHARED}/{result['evaluation']['reportPath']}"))
    assert report["rows"] == result["evaluation"]["rows"]
    assert "base_model: " in reader.text(f"{SHARED}/{result['export']['modelCardPath']}")
    merged = reader.list_files(f"{SHARED}/{result['export']['mergedPath']}")
    assert {path.rpartition("/")[2] for path in merged} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_the_merged_model_and_the_report_are_downloaded_with_their_digests_checked(
    jobs: Kubectl, tmp_path: Path
) -> None:
    result = _ended(jobs, "good-enough").status["result"]
    cli = CommandLine(jobs.kubeconfig, jobs.namespace)
    merged, report = tmp_path / "merged", tmp_path / "report"
    done = cli.run("download", "good-enough", str(merged), "--part", "merged", timeout_seconds=240)
    assert (done.exit_code, done.stdout) == (0, f"{merged}\n"), done.stderr
    assert f"{result['export']['mergedDigest']} is right" in done.stderr
    with safe_open(merged / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert not any("lora" in name for name in names)
    done = cli.run("download", "good-enough", str(report), "--part", "evaluation", timeout_seconds=240)
    assert done.exit_code == 0, done.stderr
    name = result["evaluation"]["reportPath"].rpartition("/")[2]
    assert json.loads((report / name).read_text())["rows"] == result["evaluation"]["rows"]


def test_a_part_that_a_job_does_not_have_is_said_to_be_missing(jobs: Kubectl, tmp_path: Path) -> None:
    _ended(jobs, "not-good-enough")
    cli = CommandLine(jobs.kubeconfig, jobs.namespace)
    done = cli.run("download", "not-good-enough", str(tmp_path / "merged"), "--part", "merged")
    assert done.exit_code == 4
    assert "spec.export.merged asks for one" in done.stderr


def test_a_job_that_misses_its_gate_fails_says_by_how_much_and_keeps_its_adapter(jobs: Kubectl) -> None:
    job = _ended(jobs, "not-good-enough")
    failed = job.condition("Failed")
    assert (failed["status"], failed["reason"]) == ("True", "GateNotMet")
    assert "functionAccuracy >= 0.99: found 0.000" in failed["message"]
    assert job.status["restarts"] == 0
    assert not job.status["result"]["evaluation"]["gateMet"]
    reader = start_reader(jobs, TRAINER.reference(), {SHARED: "not-good-enough-shared"}, name="other-reader")
    adapter = f"{SHARED}/{job.status['result']['adapterPath']}/adapter_model.safetensors"
    assert f"sha256:{reader.sha256(adapter)}" == job.status["result"]["adapterDigest"]
