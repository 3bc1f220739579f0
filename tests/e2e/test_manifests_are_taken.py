"""The API server takes every manifest that is built, and Pod Security takes every pod, in a restricted namespace."""

from collections.abc import Iterator

import pytest
import yaml

from finetune_operator.build import build_all
from finetune_operator.plan import make_plan
from tests.e2e.kubectl import Kubectl, Manifest, fresh_namespace
from tests.factories import make_job
from tests.golden.test_manifests import CASES

pytestmark = pytest.mark.e2e

# A case names it, and a pod whose PriorityClass is not there is refused.
PRIORITY_CLASS: Manifest = {
    "apiVersion": "scheduling.k8s.io/v1",
    "kind": "PriorityClass",
    "metadata": {"name": "training"},
    "value": 1000,
}


@pytest.fixture(scope="module")
def restricted(cluster: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a namespace where only pods of the restricted Pod Security Standard may run."""
    with fresh_namespace(cluster) as kubectl:
        label = "pod-security.kubernetes.io/enforce=restricted"
        kubectl.run("label", "--overwrite", "namespace", kubectl.namespace, label)
        kubectl.apply(PRIORITY_CLASS)
        yield kubectl
        kubectl.run("delete", "priorityclass", "training", "--wait=false")


def manifests_of(case_name: str, namespace: str) -> list[Manifest]:
    case = CASES[case_name]
    job = make_job(case.spec, case.name, namespace=namespace)
    return build_all(make_plan(job, case.settings, case.claims), attempt=1)


def dry_run(kubectl: Kubectl, manifests: list[Manifest]) -> list[str]:
    text = yaml.safe_dump_all(manifests)
    return kubectl.run("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=text).splitlines()


@pytest.mark.parametrize("case_name", CASES)
def test_every_manifest_of_a_job_is_taken(restricted: Kubectl, case_name: str) -> None:
    manifests = manifests_of(case_name, restricted.namespace)
    assert len(dry_run(restricted, manifests)) == len(manifests)


@pytest.mark.parametrize("case_name", CASES)
def test_every_pod_may_run_in_a_restricted_namespace(restricted: Kubectl, case_name: str) -> None:
    # A Job is taken whatever its pods are, and only their creation is refused; so the pods are tried on their own.
    templates = [
        template for manifest in manifests_of(case_name, restricted.namespace) for template in pods_of(manifest)
    ]
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"pod-{index}", "labels": template["metadata"]["labels"]},
            "spec": template["spec"],
        }
        for index, template in enumerate(templates)
    ]
    assert len(pods) >= 2
    assert len(dry_run(restricted, pods)) == len(pods)


def pods_of(manifest: Manifest) -> list[Manifest]:
    """Return the pod templates of a Job or a PyTorchJob, and none of anything else."""
    if manifest["kind"] == "PyTorchJob":
        return [replica["template"] for replica in manifest["spec"]["pytorchReplicaSpecs"].values()]
    return [manifest["spec"]["template"]] if manifest["kind"] == "Job" else []
