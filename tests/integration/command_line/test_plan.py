"""`plan`, with a cluster and without one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.command_line import CommandLine
from tests.e2e.kubectl import Kubectl
from tests.integration.command_line.job_files import write_job
from tests.integration.kubelet import bring_to

pytestmark = pytest.mark.apiserver

# config.json of a model that the Hub has not to be asked for.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
}


@contextmanager
def node(kubectl: Kubectl, name: str, gpus: int) -> Iterator[None]:
    """A node that is ready, for as long as the block lasts."""
    amounts = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    ready = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
    kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    kubectl.run("patch", "node", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": ready}))
    try:
        yield
    finally:
        kubectl.run("delete", "node", name)


def test_plan_tells_steps_memory_and_that_no_node_could_take_the_job(cli: CommandLine, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    job = write_job(tmp_path, compute={"nodes": 2, "gpusPerNode": 8})
    done = cli.run("plan", "-f", job, "--model-config", str(config), "--gpu", "H100", "--price", "2.5")
    assert done.exit_code == 1, done.stderr
    assert "at most 8: 4 epochs x 2, of 32 sequences (2 x 1 x 16)" in done.stdout
    assert "this cluster can never take them as they are" in done.stdout
    assert "Memory" in done.stdout


def test_plan_as_a_document_has_the_same_for_programs(cli: CommandLine, namespace: Kubectl, tmp_path: Path) -> None:
    job = write_job(tmp_path, compute={"nodes": 1, "gpusPerNode": 8})
    with node(namespace, "big", gpus=8):
        document = json.loads(cli.output("plan", "-f", job, "-o", "json"))
    assert (document["totalSteps"], document["worldSize"], document["exact"]) == (8, 8, False)
    (big,) = document["cluster"]["nodes"]
    assert (big["gpus"], big["freeGpus"], big["podsNow"]) == (8, 8, 1)
    assert document["cluster"]["fitsNow"] is True


def test_plan_takes_the_data_from_a_job_that_has_prepared_it(
    cli: CommandLine, namespace: Kubectl, tmp_path: Path
) -> None:
    bring_to(namespace, "before", "starting")
    with node(namespace, "small", gpus=0):
        document = json.loads(cli.output("plan", "-f", write_job(tmp_path, name="after"), "-o", "json"))
    assert (document["sequences"], document["tokens"], document["exact"]) == (100, 51_234, True)
    assert document["basis"] == "as job before found it"


def test_plan_needs_no_cluster(tmp_path: Path) -> None:
    nowhere = CommandLine(tmp_path / "no-kubeconfig")
    done = nowhere.run("plan", "-f", write_job(tmp_path), "--no-cluster")
    assert done.exit_code == 0, done.stderr
    assert "at most 8" in done.stdout
    assert "Planned without a cluster" in nowhere.run("plan", "-f", write_job(tmp_path)).stderr
