"""PersistentVolumeClaims: the shared filesystem and the network disk, where the job asks for new ones."""

from finetune_operator.build.manifest import Manifest, metadata, with_digest
from finetune_operator.plan import NewClaim, Plan


def build_claims(plan: Plan) -> list[Manifest]:
    """Return the claims that the operator makes. Without an owner, a claim outlives its job."""
    return [_claim(plan, disk.claim_name, disk.new) for disk in plan.disks if disk.new is not None]


def _claim(plan: Plan, name: str, new: NewClaim) -> Manifest:
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
