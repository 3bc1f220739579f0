"""The CRD is what the models say, in the dialect of the API server."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from finetune_operator import names
from finetune_operator.api import spec as api_spec
from finetune_operator.api.crd import crd, crd_text
from finetune_operator.api.rules import RULES
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.status import Condition, FineTuneJobStatus, Phase, Progress
from finetune_trainer.contract import spec as contract_spec
from tests.factories import make_job

ROOT = Path(__file__).resolve().parents[2]
COPIES = ("crds/finetunejobs.yaml", "helm/finetune-operator/files/finetunejobs.yaml")
# https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
FORBIDDEN = {"$ref", "$defs", "definitions", "allOf", "oneOf", "not", "title", "const", "nullable", "examples"}

Schema = dict[str, Any]


def root_schema() -> Schema:
    (version,) = crd()["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    assert isinstance(schema, dict)
    return schema


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema of a schema, with its path."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from nodes(schema[keyword], f"{path}[]")


NODES = dict(nodes(root_schema()))


@pytest.mark.parametrize("copy", COPIES)
def test_the_committed_crd_is_the_generated_one(copy: str) -> None:
    assert (ROOT / copy).read_text(encoding="utf-8") == crd_text(), "run `make generate`"


@pytest.mark.parametrize("path", NODES)
def test_every_field_is_structural(path: str) -> None:
    schema = NODES[path]
    assert not FORBIDDEN & set(schema)
    if schema.get("x-kubernetes-int-or-string"):
        assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}]
        return
    assert "anyOf" not in schema
    assert schema["type"] in ("object", "array", "string", "integer", "number", "boolean")
    assert not {"properties", "additionalProperties"} <= set(schema)
    if schema["type"] in ("integer", "number"):
        assert schema["format"] in ("int64", "double")
    if schema["type"] == "array":
        assert schema["x-kubernetes-list-type"] in ("atomic", "set", "map")


@pytest.mark.parametrize("path", [path for path in NODES if path.startswith((".spec", ".status"))])
def test_every_field_is_described(path: str) -> None:
    schema = NODES[path]
    if not path.endswith("[]"):
        assert schema["description"].endswith("."), path


@pytest.mark.parametrize("path", [path for path in NODES if path.startswith(".spec")])
def test_everything_of_a_spec_has_a_bound(path: str) -> None:
    schema = NODES[path]
    if schema.get("type") == "string":
        assert "enum" in schema or "maxLength" in schema, path
    if schema.get("type") == "array":
        assert "maxItems" in schema or "enum" in schema["items"], path
    if schema.get("type") in ("integer", "number"):
        assert {"minimum", "maximum"} <= set(schema), path
    if "additionalProperties" in schema:
        assert "maxProperties" in schema, path


def test_every_check_of_a_model_is_a_rule_of_the_crd() -> None:
    """Single fields are checked by patterns and bounds; what a validator checks needs a rule or a list type."""
    by_list_type = {contract_spec.Lora}
    with_validators = {
        model
        for module in (contract_spec, api_spec)
        for _, model in inspect.getmembers(module, inspect.isclass)
        if issubclass(model, BaseModel) and _own_validators(model)
    }
    covered = {cls for model in RULES for cls in model.__mro__}
    assert with_validators - by_list_type <= covered
    assert NODES[".spec.lora.targets"]["x-kubernetes-list-type"] == "set"


def _own_validators(model: type[BaseModel]) -> bool:
    decorators = model.__pydantic_decorators__
    return bool(decorators.model_validators or decorators.field_validators)


def test_what_the_models_write_is_what_the_schema_takes() -> None:
    spec = {
        "compute": {
            "nodes": 2,
            "resources": {"requests": {"cpu": 16}},
            "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
        },
        "storage": {"network": {"size": "1Gi"}},
        "tracking": {"wandb": {"project": "calls"}},
        "secretName": "tokens",
    }
    written = make_job(spec).spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    jsonschema.Draft4Validator(NODES[".spec"]).validate(written)


def test_a_status_says_nothing_that_was_not_seen() -> None:
    assert not [path for path, schema in NODES.items() if path.startswith(".status") and "default" in schema]


def test_what_the_operator_tells_is_what_the_schema_takes() -> None:
    status = FineTuneJobStatus(
        phase=Phase.RUNNING,
        conditions=(
            Condition(
                type="Running",
                status="True",
                reason="Training",
                message="",
                observed_generation=1,
                last_transition_time="2026-11-23T05:00:00Z",
            ),
        ),
        progress=Progress(step=412, total_steps=1000, steps="412/1000", epoch=1, loss=0.5, loss_text="0.500"),
    )
    written = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    jsonschema.Draft4Validator(NODES[".status"]).validate(written)


def test_every_column_shows_a_field_that_exists_and_has_its_type() -> None:
    (version,) = crd()["spec"]["versions"]
    for column in version["additionalPrinterColumns"]:
        if column["jsonPath"] == ".metadata.creationTimestamp":
            continue
        of_field = NODES[column["jsonPath"]]["type"]
        assert column["type"] == of_field or (column["type"], of_field) == ("integer", "number"), column


def test_an_empty_group_is_given_the_defaults_of_its_fields() -> None:
    for group in ("lora", "training", "checkpoint", "compute", "tracking"):
        assert NODES[f".spec.{group}"]["default"] == {}
    assert NODES[".spec.lora.rank"]["default"] == FineTuneJobSpec.model_fields["lora"].default.rank == 64


def test_the_names_are_those_of_the_api() -> None:
    definition = crd()
    assert definition["metadata"]["name"] == names.CRD_NAME == "finetunejobs.finetune.dev"
    assert definition["spec"]["names"]["shortNames"] == ["ftj"]
    assert definition["spec"]["scope"] == "Namespaced"
    assert yaml.safe_load(crd_text()) == definition


@pytest.mark.parametrize("path", NODES)
def test_no_field_is_called_what_yaml_takes_for_a_truth_value(path: str) -> None:
    # NB: Go's YAML and kubectl read a bare `n`, `y`, `no`, `on` ... as a boolean; PyYAML writes the first two bare.
    assert path.rpartition(".")[2].lower() not in {"n", "y", "no", "yes", "on", "off"}
