"""Generates the CustomResourceDefinition from the pydantic models.

Pydantic writes JSON Schema 2020-12; the API server wants a structural schema in the dialect of OpenAPI 3.0: no
references, no unions with null, one type for each field.
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import yaml
from pydantic import BaseModel

from finetune_operator import names
from finetune_operator.api.rules import ROOT_RULES, RULES, Rule
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.status import FineTuneJobStatus

Schema = dict[str, Any]

HEADING = "# GENERATED from finetune_operator.api by `make generate`.\n"

# Keywords that mean the same in both dialects.
SHARED_KEYWORDS = (
    *("description", "type", "format", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum"),
    *("minItems", "maxItems", "minProperties", "maxProperties", "required"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-int-or-string"),
)

PRINTER_COLUMNS = (
    ("Phase", "string", ".status.phase", 0),
    ("Step", "string", ".status.progress.steps", 0),
    ("Loss", "string", ".status.progress.lossText", 0),
    ("ETA", "string", ".status.progress.eta", 0),
    ("Restarts", "integer", ".status.restarts", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    # NB: a column has one path, and a model is named by one field of two.
    ("Model", "string", ".status.model", 1),
    ("Nodes", "integer", ".spec.compute.nodes", 1),
    # NB: as an integer the API server cuts the digits after the point off; a number would be printed with all of them.
    ("Tokens/s", "integer", ".status.progress.tokensPerSecond", 1),
    ("Checkpoint", "integer", ".status.checkpoint.step", 1),
    ("Reason", "string", ".status.reason", 1),
)


def crd_text() -> str:
    """Return the CustomResourceDefinition as a YAML document."""
    return HEADING + yaml.safe_dump(crd(), sort_keys=False, allow_unicode=True, width=120)


def crd() -> Schema:
    """Return the CustomResourceDefinition of FineTuneJob."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": names.CRD_NAME,
            # To delete the CRD deletes every job, so `helm uninstall` leaves it where it is.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
            },
            "versions": [_version()],
        },
    }


def _version() -> Schema:
    return {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": type_, "jsonPath": path} | ({"priority": priority} if priority else {})
            for name, type_, path, priority in PRINTER_COLUMNS
        ],
        "schema": {"openAPIV3Schema": _root_schema()},
    }


def _root_schema() -> Schema:
    status = structural_schema(FineTuneJobStatus)
    return {
        "description": "Fine-tunes a language model with LoRA on many GPUs of many nodes.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            # The name is declared for the rule that is about it.
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": structural_schema(FineTuneJobSpec),
            "status": _without_defaults(status),
        },
        "x-kubernetes-validations": _validations(ROOT_RULES),
    }


def structural_schema(model: type[BaseModel]) -> Schema:
    """Return the structural schema of a model, with the CEL rules of every model in it."""
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})
    rules = {cls.__name__: rules for cls, rules in RULES.items()}
    for name, definition in (*definitions.items(), (model.__name__, schema)):
        if name in rules:
            definition["x-kubernetes-validations"] = _validations(rules[name])
    return _structural(schema, definitions)


def _structural(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    schema = _resolved(schema, definitions)
    # Copied: YAML would write what stands in two places as an anchor and a reference to it.
    result: Schema = {key: deepcopy(schema[key]) for key in SHARED_KEYWORDS if key in schema}
    if result.get("x-kubernetes-int-or-string"):
        del result["type"]
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    result |= _default(schema) | _number(schema)
    if schema.get("type") == "array":
        items = _structural(schema["items"], definitions)
        result["items"] = items
        result.setdefault("x-kubernetes-list-type", "set" if "enum" in items else "atomic")
    elif "properties" in schema:
        result["properties"] = {name: _structural(field, definitions) for name, field in schema["properties"].items()}
    elif isinstance(schema.get("additionalProperties"), Mapping):
        result["additionalProperties"] = _structural(schema["additionalProperties"], definitions)
    if "x-kubernetes-validations" in schema:
        result["x-kubernetes-validations"] = schema["x-kubernetes-validations"]
    return result


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references and drop the null of optional fields; what the field itself says wins."""
    while True:
        if "$ref" in schema:
            inner = definitions[schema["$ref"].removeprefix("#/$defs/")]
        elif "anyOf" in schema:
            (inner,) = (choice for choice in schema["anyOf"] if choice != {"type": "null"})
        else:
            return schema
        schema = {**inner, **{key: value for key, value in schema.items() if key not in ("$ref", "anyOf")}}


def _default(schema: Mapping[str, Any]) -> Schema:
    """Return the default. An object's is `{}`: the API server then fills in the defaults of its fields."""
    default = schema.get("default")
    if "properties" in schema:
        return {"default": {}} if default is not None else {}
    return {"default": default} if default not in (None, [], {}, ()) else {}


def _number(schema: Mapping[str, Any]) -> Schema:
    """Return format and bounds of a number; in OpenAPI 3.0 an exclusive bound is a flag beside the bound."""
    if schema.get("type") not in ("integer", "number"):
        return {}
    result: Schema = {"format": "int64" if schema["type"] == "integer" else "double"}
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in schema:
            result |= {bound: schema[exclusive], exclusive: True}
    return result


def _without_defaults(schema: Schema) -> Schema:
    """Return a schema without defaults: a status says what was seen, and nothing that was not."""
    result = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in schema:
        result["properties"] = {name: _without_defaults(field) for name, field in schema["properties"].items()}
    if "items" in schema:
        result["items"] = _without_defaults(schema["items"])
    return result


def _validations(rules: Sequence[Rule]) -> list[dict[str, str]]:
    return [rule.manifest() for rule in rules]
