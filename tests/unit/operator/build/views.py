"""What a test looks at in a Job and its pods."""

from typing import Any

from finetune_operator.build import Manifest, wanted
from finetune_operator.plan import Plan


def train_jobs_of(plan: Plan, attempt: int) -> list[Manifest]:
    """What makes the pods of an attempt, that of rank 0 first."""
    return [item.build() for item in wanted.workloads(plan, attempt)]


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    """The spec of a Job's pods."""
    spec = job["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def container_of(pod: dict[str, Any]) -> dict[str, Any]:
    """The one container of a pod."""
    (container,) = pod["containers"]
    assert isinstance(container, dict)
    return container


def environment_of(pod: dict[str, Any]) -> dict[str, Any]:
    """The values, or their sources, of the variables of a pod's container; no variable stands there twice."""
    entries = container_of(pod)["env"]
    assert len({entry["name"] for entry in entries}) == len(entries)
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}


def claims_of(pod: dict[str, Any]) -> list[str]:
    """The claims that a pod mounts."""
    sources = [volume.get("persistentVolumeClaim") for volume in pod["volumes"]]
    return [source["claimName"] for source in sources if source is not None]
