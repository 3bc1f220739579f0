"""What every manifest has: labels, the owner, the digest of its own content."""

import hashlib
from collections.abc import Sequence
from typing import Any

import orjson
import yaml

from finetune_operator import names
from finetune_operator.plan import Plan

Manifest = dict[str, Any]


def metadata(plan: Plan, name: str, labels: dict[str, str] | None = None, *, owned: bool = True) -> Manifest:
    """Return the metadata of a child object: it goes when the job goes, unless `owned` is False."""
    fields: Manifest = {
        "name": name,
        "namespace": plan.namespace,
        "labels": names.job_labels(plan.name) | (labels or {}),
    }
    if owned:
        fields["ownerReferences"] = [_owner_reference(plan)]
    return fields


def with_digest(manifest: Manifest) -> Manifest:
    """Return the manifest with the SHA-256 of its canonical JSON as an annotation."""
    canonical = orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)
    annotations = {names.Annotation.MANIFEST_DIGEST.value: "sha256:" + hashlib.sha256(canonical).hexdigest()}
    fields = manifest["metadata"]
    return manifest | {"metadata": fields | {"annotations": fields.get("annotations", {}) | annotations}}


def digest_of(manifest: Manifest) -> str:
    """Return the digest that a manifest carries."""
    return str(manifest["metadata"]["annotations"][names.Annotation.MANIFEST_DIGEST])


def manifests_text(manifests: Sequence[Manifest]) -> str:
    """Return manifests as YAML documents; a text of several lines stands as it is written."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, allow_unicode=True, explicit_start=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _owner_reference(plan: Plan) -> Manifest:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": plan.name,
        "uid": plan.job.metadata.uid,
        "controller": True,
        # NB: without blockOwnerDeletion, because with it and the admission plugin OwnerReferencesPermissionEnforcement
        # the operator would have to be allowed to update finetunejobs/finalizers.
    }
