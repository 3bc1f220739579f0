"""What the chart lets the operator do, asked of a real API server: its own namespaces, no Secrets, no shell."""

from collections.abc import Iterator

import pytest

from tests.e2e.kubectl import Kubectl, Manifest, Refused
from tests.integration.conftest import install, render_chart
from tests.integration.control_plane import OPERATOR_USER

pytestmark = pytest.mark.apiserver

# (verb, resource) that nobody who runs trainings needs.
NEVER = [
    *((verb, "secrets") for verb in ("get", "list", "watch", "create", "update", "patch", "delete")),
    ("create", "pods"),
    ("create", "pods/exec"),
    ("create", "pods/attach"),
    ("create", "pods/portforward"),
    ("get", "pods/log"),
    ("create", "serviceaccounts/token"),
    ("delete", "persistentvolumeclaims"),
    ("create", "roles.rbac.authorization.k8s.io"),
    ("bind", "clusterroles.rbac.authorization.k8s.io"),
    ("impersonate", "serviceaccounts"),
    ("patch", "nodes"),
    ("list", "nodes"),
    ("create", "finetunejobs.finetune.dev"),
    ("update", "finetunejobs.finetune.dev"),
    ("patch", "finetunejobs.finetune.dev"),
]
ALWAYS = [("create", "jobs.batch"), ("watch", "pods"), ("list", "finetunejobs.finetune.dev")]
INSTALLS: dict[str, tuple[list[str], list[str], list[str]]] = {
    # values, namespaces that it works in, namespaces that it does not
    "in all namespaces": ([], ["team-a", "team-b"], []),
    "in one namespace": (["watchNamespaces={team-a}"], ["team-a"], ["team-b", "kube-system", "finetune-system"]),
    "with prices by node": (
        [
            *("watchNamespaces={team-a}", "pricing.currency=USD", "pricing.gpuHour.default=3"),
            *("pricing.gpuHour.byNodeLabel[0].label=a", "pricing.gpuHour.byNodeLabel[0].value=b"),
            "pricing.gpuHour.byNodeLabel[0].price=2",
        ],
        ["team-a"],
        ["team-b"],
    ),
}


@pytest.fixture(scope="module", params=INSTALLS, ids=list(INSTALLS))
def chart(request: pytest.FixtureRequest, kubectl: Kubectl) -> Iterator[tuple[str, Kubectl]]:
    """The chart's roles, and the name of the way in which it is installed."""
    for namespace in ("team-a", "team-b", "finetune-system"):
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    values, _, _ = INSTALLS[request.param]
    rendered = render_chart(*values)
    install(kubectl, rendered)
    yield request.param, kubectl
    for body in rendered:
        if "rbac" in body["apiVersion"]:
            kubectl.within(body["metadata"].get("namespace", "default")).run(
                "delete", body["kind"], body["metadata"]["name"]
            )


def may(kubectl: Kubectl, verb: str, resource: str, namespace: str) -> bool:
    try:
        words = kubectl.within(namespace).run("auth", "can-i", verb, resource, f"--as={OPERATOR_USER}")
    except Refused:  # `no` ends with 1
        return False
    return words.strip() == "yes"


def test_it_may_work_where_it_is_installed_for_and_nowhere_else(chart: tuple[str, Kubectl]) -> None:
    name, kubectl = chart
    _, own, others = INSTALLS[name]
    for verb, resource in ALWAYS:
        assert all(may(kubectl, verb, resource, namespace) for namespace in own), (verb, resource)
        assert not any(may(kubectl, verb, resource, namespace) for namespace in others), (verb, resource)


def test_it_may_never(chart: tuple[str, Kubectl]) -> None:
    name, kubectl = chart
    _, own, others = INSTALLS[name]
    granted = [what for what in NEVER for namespace in (own[0], *others) if may(kubectl, *what, namespace)]
    assert granted == []


def test_it_may_read_a_node_only_where_prices_differ_by_node(chart: tuple[str, Kubectl]) -> None:
    name, kubectl = chart
    assert may(kubectl, "get", "nodes", "default") is (name == "with prices by node")


@pytest.mark.parametrize("values", [values for values, _, _ in INSTALLS.values()], ids=list(INSTALLS))
def test_no_rule_has_a_wildcard(values: list[str]) -> None:
    roles: list[Manifest] = [body for body in render_chart(*values) if body["kind"] in ("Role", "ClusterRole")]
    assert roles
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}, role["metadata"]["name"]
