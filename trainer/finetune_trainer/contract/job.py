"""The YAML document that carries a job from the operator to the trainer.

It is a FineTuneJob. The operator puts one into the ConfigMap that every pod of the job mounts; on a laptop the
manifest that a person wrote serves as well, because the fields that only Kubernetes needs are passed over.
"""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from finetune_trainer.contract.spec import TrainerSpec

API_VERSION = "finetune.dev/v1alpha1"
KIND = "FineTuneJob"

# Fields of a FineTuneJob that only the operator reads. A test holds them against `finetune_operator.api`.
CLUSTER_FIELDS = frozenset({"storage", "secretName", "runPolicy", "suspend"})
CLUSTER_COMPUTE_FIELDS = frozenset(
    {
        *("backend", "image", "imagePullPolicy", "imagePullSecrets", "resources", "env"),
        *("nodeSelector", "tolerations", "affinity", "priorityClassName", "rdma"),
    }
)

# libyaml, where PyYAML was built with it, writes the same text ten times as fast.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class JobFileError(Exception):
    """A job file that cannot be used; the message names the file and every wrong field."""


# What becomes a directory on the shared filesystem. The API server's rules are stricter; a laptop has none.
_PATH_PART = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,252}")


class TrainerJob(BaseModel):
    """A job as the trainer sees it: who it is, and what it is to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    namespace: str = "default"
    uid: str = "local"
    spec: TrainerSpec


def read_job(path: Path) -> TrainerJob:
    """Read a FineTuneJob from a YAML file.

    Raises:
        JobFileError: the file cannot be read, is no FineTuneJob, or has wrong or unknown fields.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobFileError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobFileError(f"{path}: is not YAML: {error}") from error
    try:
        return parse_job(document)
    except JobFileError as error:
        raise JobFileError(f"{path}: {error}") from error


def parse_job(document: Any) -> TrainerJob:
    """Make a job of a parsed FineTuneJob, leaving out what only the operator reads.

    Raises:
        JobFileError: the document is no FineTuneJob, or has wrong or unknown fields; all of them are named.
    """
    if not isinstance(document, dict) or document.get("apiVersion") != API_VERSION or document.get("kind") != KIND:
        raise JobFileError(f"is not one FineTuneJob: expected apiVersion: {API_VERSION} and kind: {KIND}")
    metadata, spec = document.get("metadata"), document.get("spec")
    if not isinstance(metadata, dict) or not metadata.get("name"):
        raise JobFileError("metadata.name: is missing")
    for part in ("name", "namespace", "uid"):
        if part in metadata and not _PATH_PART.fullmatch(str(metadata[part])):
            raise JobFileError(
                f"metadata.{part}: {metadata[part]!r} names no directory: use letters, digits, -, _ and ."
            )
    if not isinstance(spec, dict):
        raise JobFileError("spec: is missing")
    try:
        return TrainerJob(
            name=metadata["name"],
            namespace=metadata.get("namespace", "default"),
            uid=metadata.get("uid", "local"),
            spec=TrainerSpec.model_validate(_without_cluster_fields(spec)),
        )
    except ValidationError as error:
        raise JobFileError("; ".join(describe_problems(error, TrainerSpec, prefix="spec"))) from error


def write_job(job: TrainerJob) -> str:
    """Return the YAML text of a job, every default written out; `read_job` reads it back."""
    return _yaml_text(job.name, job.namespace, job.uid, job.spec.model_dump_json(by_alias=True, exclude_none=True))


# The operator asks for the text at every look at a job, and it stays the same; to write it takes a millisecond.
@lru_cache(maxsize=4096)
def _yaml_text(name: str, namespace: str, uid: str, spec_json: str) -> str:
    document = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace, "uid": uid},
        "spec": json.loads(spec_json),
    }
    return yaml.dump(document, Dumper=_DUMPER, sort_keys=False, allow_unicode=True)


def describe_problems(error: ValidationError, model: type[BaseModel], prefix: str) -> list[str]:
    """Return a line for each problem of a validation: the field's path in the manifest, and what is wrong there.

    Args:
        error: what was found.
        model: what the document was to be; its fields are named where one is not known.
        prefix: path of the document in the manifest.
    """
    found = error.errors()
    problems = []
    for problem in found:
        inside = [other["loc"] for other in found if other is not problem]
        if problem["type"] == "too_short" and any(loc[: len(problem["loc"])] == problem["loc"] for loc in inside):
            continue  # NB: pydantic counts the elements that are right, and so complains about a list's length as well
        path = prefix
        for part in problem["loc"]:
            path += f"[{part}]" if isinstance(part, int) else f".{part}"
        problems.append(f"{path}: {_message(problem['type'], problem['msg'])}{_known_fields(problem, model)}")
    return problems


def _known_fields(problem: ErrorDetails, model: type[BaseModel]) -> str:
    """Name the fields of the group that a field was not found in."""
    if problem["type"] != "extra_forbidden":
        return ""
    group: type[BaseModel] | None = model
    for part in problem["loc"][:-1]:
        if isinstance(part, str) and group is not None:
            fields = {field.alias or name: field for name, field in group.model_fields.items()}
            group = _group_in(fields[part].annotation) if part in fields else None
    if group is None:
        return ""
    return f"; known are {', '.join(field.alias or name for name, field in group.model_fields.items())}"


def _group_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model in a type like `Gate | None` or `tuple[Dataset, ...]`, or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((group for part in get_args(annotation) if (group := _group_in(part)) is not None), None)


def _message(kind: str, words: str) -> str:
    """Say it in the words of a manifest instead of those of Python."""
    if kind == "extra_forbidden":
        return "is not a known field"
    if kind == "missing":
        return "is missing"
    words = words.removeprefix("Value error, ").replace(" after validation", "")
    return re.sub(r"^(Input|String|Tuple|Dictionary) should ", "must ", words)


def _without_cluster_fields(spec: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in spec.items() if name not in CLUSTER_FIELDS}
    if isinstance(kept.get("compute"), dict):
        kept["compute"] = {name: value for name, value in kept["compute"].items() if name not in CLUSTER_COMPUTE_FIELDS}
    return kept
