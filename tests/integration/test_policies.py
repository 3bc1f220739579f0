"""The admission policies that are shipped as samples, judged by a real API server."""

import time
from pathlib import Path

import pytest
import yaml

from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl, Refused

pytestmark = pytest.mark.apiserver

POLICIES = Path("manifests/samples/policies")
FOREIGN = "docker.io/somebody/trainer:latest"
TWO_BY_EIGHT = {"compute": {"nodes": 2, "gpusPerNode": 8}}


def _namespace(kubectl: Kubectl, name: str, labels: dict[str, str] | None = None) -> Kubectl:
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}})
    return kubectl.within(name)


@pytest.fixture(scope="module")
def guarded(installed: Kubectl) -> Kubectl:
    """A cluster in whose ordinary namespaces both policies are in force."""
    documents = [body for path in sorted(POLICIES.glob("*.yaml")) for body in yaml.safe_load_all(path.read_text())]
    installed.apply(*documents)
    ordinary = _namespace(installed, "ordinary")

    def in_force() -> bool:
        return all(
            _is_refused(ordinary, tiny_job("probe", **overrides))
            for overrides in ({"compute__image": FOREIGN}, TWO_BY_EIGHT)
        )

    # The API server compiles a policy some moments after it was made.
    ordinary.wait_until("the policies are in force", in_force, timeout_seconds=60)
    return installed


def _is_refused(kubectl: Kubectl, job: dict[str, object]) -> bool:
    try:
        kubectl.run("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(job))
    except Refused:
        return True
    time.sleep(0.2)
    return False


def test_an_image_of_another_registry_is_refused_and_the_message_names_those_that_are_allowed(guarded: Kubectl) -> None:
    with pytest.raises(Refused, match=r"registry\.example\.com/, ghcr\.io/my-team/"):
        guarded.within("ordinary").apply(tiny_job("foreign", compute__image=FOREIGN))


def test_a_registry_whose_name_begins_like_an_allowed_one_is_another_one(guarded: Kubectl) -> None:
    with pytest.raises(Refused, match="is not of an allowed registry"):
        guarded.within("ordinary").apply(
            tiny_job("alike", compute__image="registry.example.com.evil.example/trainer:1")
        )


def test_an_image_of_an_allowed_registry_and_the_charts_own_image_pass(guarded: Kubectl) -> None:
    ordinary = guarded.within("ordinary")
    ordinary.apply(tiny_job("own", compute__image="registry.example.com/trainer:1"), tiny_job("charts"))


def test_a_namespace_with_the_label_is_left_out(guarded: Kubectl) -> None:
    free = _namespace(guarded, "research", {"finetune.dev/any-registry": "yes"})
    free.apply(tiny_job("foreign", compute__image=FOREIGN))


def test_more_gpus_than_the_ceiling_are_refused_with_both_numbers(guarded: Kubectl) -> None:
    with pytest.raises(Refused, match=r"asks for 16 GPUs .* namespace ordinary allows 8"):
        guarded.within("ordinary").apply(tiny_job("large", **TWO_BY_EIGHT))


def test_a_namespaces_label_sets_its_own_ceiling(guarded: Kubectl) -> None:
    large = _namespace(guarded, "large", {"finetune.dev/max-gpus": "16"})
    large.apply(tiny_job("fits", **TWO_BY_EIGHT))
    with pytest.raises(Refused, match="allows 16"):
        large.apply(tiny_job("does-not", compute={"nodes": 3, "gpusPerNode": 8}))


def test_processors_are_not_counted(guarded: Kubectl) -> None:
    guarded.within("ordinary").apply(
        tiny_job("processors", compute={"nodes": 20, "device": "cpu", "processesPerNode": 2})
    )
