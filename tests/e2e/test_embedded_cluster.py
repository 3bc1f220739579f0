"""The embedded cluster itself: what a gang of pods needs of it, and that `up` mends what was broken.

These tests are about dev/cluster and use it even where KUBECONFIG names another cluster for the others.
"""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from dev.cluster import layout
from dev.cluster.nodes import claim_gpus
from dev.cluster.processes import cluster_processes, kill
from dev.cluster.tiny_image import TINY_IMAGE
from tests.e2e.kubectl import Kubectl, Manifest, fresh_namespace

pytestmark = pytest.mark.e2e

SECURITY = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
# Each rank serves its name for the other, then asks the other for its name: over pod DNS, across the nodes.
MEET = """
(while true; do hostname | nc -l -p 29500; done) &
other=meet-$((1 - JOB_COMPLETION_INDEX)).meet
until said=$(nc -w 2 $other 29500 < /dev/null) && [ -n "$said" ]; do sleep 0.2; done
echo "met $said"
sleep 3
"""


@pytest.fixture
def namespace() -> Iterator[Kubectl]:
    with fresh_namespace(Kubectl(layout.binary("kubectl"), layout.KUBECONFIG)) as kubectl:
        yield kubectl


def pod_spec(script: str, **more: object) -> Manifest:
    return {
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {"name": "main", "image": TINY_IMAGE, "command": ["sh", "-c", script], "securityContext": SECURITY, **more}
        ],
    }


def gang_over_both_nodes() -> tuple[Manifest, Manifest]:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "meet"}},
    }
    spec = {**pod_spec(MEET), "subdomain": "meet", "topologySpreadConstraints": [spread]}
    template = {"metadata": {"labels": {"app": "meet"}}, "spec": spec}
    job = {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimit": 0, "template": template}
    service = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"app": "meet"}}
    return (
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "meet"}, "spec": service},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "meet"}, "spec": job},
    )


def up() -> None:
    """Bring the cluster up."""
    done = subprocess.run(
        [sys.executable, "-m", "dev.cluster", "up"], cwd=layout.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def daemons() -> dict[str, int]:
    # The first of a name: a child that containerd has just forked is called as its parent is, for a moment.
    processes = sorted(cluster_processes(), key=lambda process: process.pid, reverse=True)
    return {process.part: process.pid for process in processes if not process.is_shim}


def test_a_gang_on_both_nodes_meets_over_pod_dns(namespace: Kubectl) -> None:
    namespace.apply(*gang_over_both_nodes())
    namespace.run("wait", "job/meet", "--for=condition=Complete", "--timeout=50s")

    pods = namespace.items("pods", "app=meet")
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node0", "node1"}
    said = namespace.run("logs", "--selector=app=meet").splitlines()
    assert {line for line in said if line.startswith("met ")} == {"met meet-0", "met meet-1"}


def test_a_pod_reaches_what_listens_on_the_host(namespace: Kubectl) -> None:
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "ask"},
            "spec": pod_spec(f"printf 'GET /v2/ HTTP/1.0\\r\\n\\r\\n' | nc {layout.REGISTRY.replace(':', ' ')}"),
        }
    )
    namespace.run("wait", "pod/ask", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=50s")

    assert "200 OK" in namespace.run("logs", "ask")


def test_what_one_node_writes_to_the_shared_filesystem_the_other_reads(namespace: Kubectl) -> None:
    claim = {"accessModes": ["ReadWriteMany"], "storageClassName": "shared-fs"}
    claim["resources"] = {"requests": {"storage": "1Gi"}}
    namespace.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "shared"}, "spec": claim}
    )
    for name, node, script in (
        ("writer", "node0", "echo from node0 > /mnt/file"),
        ("reader", "node1", "until cat /mnt/file; do sleep 0.2; done"),
    ):
        spec = pod_spec(script, volumeMounts=[{"name": "shared", "mountPath": "/mnt"}])
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
        spec["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}]
        namespace.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    namespace.run("wait", "pod/reader", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=50s")

    assert "from node0" in namespace.run("logs", "reader")


def test_a_pod_that_asks_for_gpus_waits_until_a_node_claims_them(namespace: Kubectl) -> None:
    spec = pod_spec("true", resources={"limits": {"nvidia.com/gpu": "8"}})
    namespace.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gpus"}, "spec": spec})
    namespace.run("wait", "pod/gpus", "--for=condition=PodScheduled=false", "--timeout=50s")

    claim_gpus(layout.NODES[1], 8)
    try:
        namespace.run("wait", "pod/gpus", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=50s")
    finally:
        claim_gpus(layout.NODES[1], 0)

    assert namespace.get("pod", "gpus")["spec"]["nodeName"] == "node1"


def test_up_restarts_nothing_that_runs() -> None:
    up()
    before = daemons()

    up()
    assert daemons() == before


@pytest.mark.parametrize("victims", [["coredns"], ["etcd"], ["kubelet-node1", "kube-proxy-node1", "containerd-node0"]])
def test_up_brings_back_what_was_killed(victims: list[str], namespace: Kubectl) -> None:
    before = daemons()
    kill(before[name] for name in victims)

    up()

    assert daemons().keys() == before.keys()
    namespace.apply(*gang_over_both_nodes())
    namespace.run("wait", "job/meet", "--for=condition=Complete", "--timeout=50s")
