"""PersistentVolumeClaims: the shared filesystem and the network disk, where the job asks for new ones."""

from finetune_operator.build.manifest import Manifest, metadata, with_digest
from finetune_operator.plan import NewClaim, Plan


def build_claim(plan: Plan, name: str, new: NewClaim) -> Manifest:
    """Return a claim that the operator makes. Without an owner, it outlives its job."""
    spec: Manifest = {
        "accessModes": [new.access_mode.value],
        "resources": {"requests": {"storage": new.size}},
    }
    # NB: an empty name asks for a volume without a class; leaving it out asks for the cluster's default class.
    if new.storage_class_name is not None:
        spec["storageClassName"] = new.storage_class_name
    return with_digest(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": metadata(plan, name, owned=new.deleted_with_job),
            "spec": spec,
        }
    )
