"""What the chart lets the operator do, asked of a real API server: its own namespaces, no Secrets, no shell."""

from collections.abc import Iterator, Sequence

import pytest
import yaml

from finetune_operator.resources import PERMISSIONS, PERMISSIONS_FOR_NODE_PRICES
from tests.e2e.kubectl import Kubectl, Manifest
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


Question = tuple[str, str, str]  # a verb, a resource as in `kubectl auth can-i`, a namespace


def granted(kubectl: Kubectl, questions: Sequence[Question]) -> list[Question]:
    """Return what of it the operator may do, by the API server's word."""
    reviews = yaml.safe_dump_all(_review(*question) for question in questions)
    answers = kubectl.run("create", "-f", "-", "--output", r'jsonpath={.status.allowed}{"\n"}', stdin=reviews).split()
    return [what for what, answer in zip(questions, answers, strict=True) if answer == "true"]


def _review(verb: str, resource: str, namespace: str) -> Manifest:
    kind, _, group = resource.partition(".")
    kind, _, subresource = kind.partition("/")
    attributes = {"verb": verb, "group": group, "resource": kind, "subresource": subresource, "namespace": namespace}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": OPERATOR_USER, "groups": ["system:authenticated"], "resourceAttributes": attributes},
    }


def test_it_may_work_where_it_is_installed_for_and_nowhere_else(chart: tuple[str, Kubectl]) -> None:
    name, kubectl = chart
    _, own, others = INSTALLS[name]
    wanted = [(*what, namespace) for what in ALWAYS for namespace in own]
    assert granted(kubectl, [*wanted, *((*what, namespace) for what in ALWAYS for namespace in others)]) == wanted


def test_it_may_never(chart: tuple[str, Kubectl]) -> None:
    name, kubectl = chart
    _, own, others = INSTALLS[name]
    assert granted(kubectl, [(*what, namespace) for what in NEVER for namespace in (own[0], *others)]) == []


def test_it_may_read_a_node_only_where_prices_differ_by_node(chart: tuple[str, Kubectl]) -> None:
    name, kubectl = chart
    assert bool(granted(kubectl, [("get", "nodes", "default")])) is (name == "with prices by node")


@pytest.mark.parametrize("values", [values for values, _, _ in INSTALLS.values()], ids=list(INSTALLS))
def test_no_rule_has_a_wildcard(values: list[str]) -> None:
    roles: list[Manifest] = [body for body in render_chart(*values) if body["kind"] in ("Role", "ClusterRole")]
    assert roles
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}, role["metadata"]["name"]


def test_prices_by_node_add_the_reading_of_a_node_and_nothing_else() -> None:
    values, _, _ = INSTALLS["with prices by node"]
    allowed = {
        (group, resource): frozenset(rule["verbs"])
        for role in render_chart(*values)
        if role["kind"] in ("Role", "ClusterRole")
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert allowed == {**PERMISSIONS, **PERMISSIONS_FOR_NODE_PRICES}
