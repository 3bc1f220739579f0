"""Objects for tests: a valid FineTuneJob, changed where a test needs it to differ."""

from collections.abc import Mapping
from typing import Any

from finetune_operator.api.job import FineTuneJob
from finetune_operator.plan import ClaimAccessModes, Plan, make_plan
from finetune_operator.settings import Settings

UID = "7d0f1c1e-53a5-4a3b-9a0e-6f2f7b8a4c21"
SETTINGS = Settings(trainer_image="registry.example/finetune-trainer:1.2.3")


def manifest(spec: Mapping[str, Any] | None = None, name: str = "calls", **metadata: Any) -> dict[str, Any]:
    """Return the smallest FineTuneJob, not evaluated, its spec changed by a JSON merge patch (None removes a field)."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": "team-a", "uid": UID, "generation": 1, **metadata},
        "spec": merged(
            {
                "model": {"huggingFace": {"repository": "meta-llama/Llama-3.1-8B-Instruct"}},
                "datasets": [{"huggingFace": {"repository": "team/calls"}, "format": "hermes"}],
                "storage": {"shared": {"size": "2Ti", "storageClassName": "shared-fs"}},
                "evaluation": {"enabled": False},
            },
            spec or {},
        ),
    }


def make_job(spec: Mapping[str, Any] | None = None, name: str = "calls", **metadata: Any) -> FineTuneJob:
    """Return the same as the operator reads it."""
    return FineTuneJob.parse(manifest(spec, name, **metadata))


def make_job_plan(
    spec: Mapping[str, Any] | None = None,
    name: str = "calls",
    claims: ClaimAccessModes | None = None,
    settings: Settings = SETTINGS,
    **metadata: Any,
) -> Plan:
    """Return the plan of the same."""
    return make_plan(make_job(spec, name, **metadata), settings, claims or {})


def condition(
    kind: str, status: str = "True", reason: str | None = None, message: str = "", observed_generation: int = 1
) -> dict[str, Any]:
    """Return a condition of a status as the API server has it; its reason is its kind unless it is said."""
    return {
        "type": kind,
        "status": status,
        "reason": kind if reason is None else reason,
        "message": message,
        "observedGeneration": observed_generation,
        "lastTransitionTime": "2026-11-23T05:00:00Z",
    }


def merged(document: Any, patch: Any) -> Any:
    """Return a document changed by a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, Mapping) or not isinstance(document, Mapping):
        return patch
    result = dict(document)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(document.get(key, {}), value) if isinstance(value, Mapping) else value
    return result
