"""The role that is installed and the table of what the operator does are one."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio import client

from finetune_operator.cluster import CHILDREN, FINE_TUNE_JOBS, PERMISSIONS, PODS, Cluster
from finetune_operator.metrics import Metrics

INSTALL = Path("manifests/install.yaml")


def _granted() -> dict[tuple[str, str], frozenset[str]]:
    documents: list[dict[str, Any]] = [body for body in yaml.safe_load_all(INSTALL.read_text()) if body]
    (role,) = [
        body for body in documents if body["kind"] == "ClusterRole" and body["metadata"]["name"] == "finetune-operator"
    ]
    return {
        (group, resource): frozenset(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_the_installed_role_grants_what_the_operator_does_and_not_a_verb_more() -> None:
    assert _granted() == dict(PERMISSIONS)


async def test_a_request_that_is_not_in_the_table_is_never_sent() -> None:
    cluster = Cluster(client.ApiClient(client.Configuration(host="http://127.0.0.1:9")), Metrics())
    try:
        with pytest.raises(ValueError, match="delete pods is not in the table"):
            await cluster._request("delete", PODS, "default", "somebodys-pod")
    finally:
        await cluster.close()


def test_what_is_watched_may_be_watched() -> None:
    assert all({"list", "watch"} <= resource.verbs for resource in (FINE_TUNE_JOBS, *CHILDREN))


def test_the_operator_may_read_no_secret() -> None:
    assert not [resource for _, resource in PERMISSIONS if "secret" in resource]
