"""The kinds of objects that the commands look at."""

from dataclasses import dataclass

from finetune_operator import names


@dataclass(frozen=True)
class Kind:
    """A kind of object and where the API server keeps it."""

    name: str
    group: str
    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Return its path on the API server; no namespace means all of them."""
        parts = ["/api" if not self.group else f"/apis/{self.group}", self.version]
        parts += ["namespaces", namespace] if self.namespaced and namespace is not None else []
        return "/".join([*parts, *(part for part in (self.plural, name, subresource) if part)])


FINE_TUNE_JOB = Kind(names.KIND, names.GROUP, names.VERSION, names.PLURAL)
POD = Kind("Pod", "", "v1", "pods")
SECRET = Kind("Secret", "", "v1", "secrets")
EVENT = Kind("Event", "", "v1", "events")
CLAIM = Kind("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims")
QUOTA = Kind("ResourceQuota", "", "v1", "resourcequotas")
JOB = Kind("Job", "batch", "v1", "jobs")
DEPLOYMENT = Kind("Deployment", "apps", "v1", "deployments")
NODE = Kind("Node", "", "v1", "nodes", namespaced=False)
STORAGE_CLASS = Kind("StorageClass", "storage.k8s.io", "v1", "storageclasses", namespaced=False)
