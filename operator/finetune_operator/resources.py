"""The kinds of objects that the operator works with, and what it does to each.

The chart's ClusterRole is tested against this table, and no request is sent that is not in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_operator import names


@dataclass(frozen=True)
class Resource:
    """A kind of object, and what the operator does to it."""

    kind: str
    group: str
    version: str
    plural: str
    verbs: frozenset[str]
    subresource: str = ""

    @property
    def rbac_name(self) -> str:
        """The resource as a ClusterRole names it."""
        return f"{self.plural}/{self.subresource}" if self.subresource else self.plural

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """Return the resource's path on the API server; no namespace means all of them."""
        parts = ["/api" if not self.group else f"/apis/{self.group}", self.version]
        parts += ["namespaces", namespace] if namespace is not None else []
        parts += [part for part in (self.plural, name, self.subresource) if part]
        return "/".join(parts)


# NB: server-side apply of an object that is not there needs `create` besides `patch`. FineTuneJobs are watched by kopf.
_READ = frozenset({"list", "watch"})
_MADE = _READ | {"get", "create", "patch"}
FINE_TUNE_JOBS = Resource(names.KIND, names.GROUP, names.VERSION, names.PLURAL, _READ | {"delete"})
FINE_TUNE_JOB_STATUS = Resource(
    names.KIND, names.GROUP, names.VERSION, names.PLURAL, frozenset({"patch"}), subresource="status"
)
JOBS = Resource("Job", "batch", "v1", "jobs", _MADE | {"delete"})
PODS = Resource("Pod", "", "v1", "pods", _READ | {"delete"})
CLAIMS = Resource("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims", _MADE)
SERVICES = Resource("Service", "", "v1", "services", _MADE | {"delete"})
CONFIG_MAPS = Resource("ConfigMap", "", "v1", "configmaps", _MADE)
# Not of a namespace, and asked for only where the price of a GPU differs by the label of its node.
NODES = Resource("Node", "", "v1", "nodes", frozenset({"get"}))
EVENTS = Resource("Event", "", "v1", "events", frozenset({"list", "create"}))

# NB: pods are listed after the Jobs that own them, so that a Job is never newer than its pods.
CHILDREN = (CLAIMS, CONFIG_MAPS, SERVICES, JOBS, PODS)
PYTORCH_JOBS = Resource(
    names.PYTORCH_JOB_KIND,
    names.PYTORCH_JOB_GROUP,
    names.PYTORCH_JOB_VERSION,
    names.PYTORCH_JOB_PLURAL,
    _MADE | {"delete"},
)
# Children of kinds that a cluster may lack.
OPTIONAL_CHILDREN = (PYTORCH_JOBS,)
RESOURCES = (FINE_TUNE_JOBS, FINE_TUNE_JOB_STATUS, *CHILDREN, *OPTIONAL_CHILDREN, EVENTS)
PERMISSIONS: Mapping[tuple[str, str], frozenset[str]] = {
    (resource.group, resource.rbac_name): resource.verbs for resource in RESOURCES
}
PERMISSIONS_FOR_NODE_PRICES: Mapping[tuple[str, str], frozenset[str]] = {(NODES.group, NODES.rbac_name): NODES.verbs}
BY_KIND: Mapping[str, Resource] = {resource.kind: resource for resource in (*CHILDREN, *OPTIONAL_CHILDREN)}
