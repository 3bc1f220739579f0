"""What the API server checks and a schema cannot say, as CEL rules of the CRD.

Each rule repeats a validator of the pydantic models, so that a wrong manifest is refused at `kubectl apply`; a table
of wrong manifests is judged by both (tests/refused_manifests.py). The rest of the checks needs to know the cluster, and
is told in the condition Accepted.

NB: the API server estimates what a rule costs from the bounds of the fields it reads, so every string, list and map
has one: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#resource-use-by-validation-functions
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from finetune_operator import names
from finetune_operator.api.placement import LABEL_KEY_PATTERN, Toleration
from finetune_operator.api.spec import (
    BUDGET_PATTERN,
    LIMIT_PATTERN,
    LIMIT_RULE,
    REQUEST_PATTERN,
    REQUEST_RULE,
    RESERVED_VARIABLE_PATTERN,
    Compute,
    FineTuneJobSpec,
    NetworkStorage,
    Resources,
    RunPolicy,
    SharedStorage,
)
from finetune_trainer.contract.dataset import Dataset, EvaluationDataset
from finetune_trainer.contract.environment import JOB_COMPLETION_INDEX, SECRET_NAMES
from finetune_trainer.contract.outcome import GATE_NEEDS_ROWS, Evaluation, Gate
from finetune_trainer.contract.spec import ModelSource


@dataclass(frozen=True)
class Rule:
    """A CEL expression that must be true, what is told when it is not, and the field that it is told about."""

    expression: str
    message: str
    field_path: str | None = None

    def manifest(self) -> dict[str, str]:
        """Return the rule as an entry of `x-kubernetes-validations`."""
        entry = {"rule": self.expression, "message": self.message}
        return entry | ({"fieldPath": self.field_path} if self.field_path else {})


def _quoted(pattern: str) -> str:
    """Return a regular expression as a raw CEL string."""
    return f"r'{pattern}'"


def _names_match(field: str, pattern: str, message: str) -> Rule:
    """Return the rule that every name in a map matches a pattern."""
    expression = f"!has(self.{field}) || self.{field}.all(name, name.matches({_quoted(pattern)}))"
    return Rule(expression, message, f".{field}")


ONE_SOURCE = Rule("has(self.huggingFace) != has(self.path)", "set exactly one of huggingFace and path")
PATH_RULES = (
    Rule(
        "!has(self.path) || !self.path.startsWith('/')",
        "is relative to the root of the shared filesystem: leave the leading / out",
        ".path",
    ),
    Rule(r"!has(self.path) || !self.path.matches(r'(^|/)\.\.(/|$)')", "may not contain '..'", ".path"),
)
STORAGE_RULES = (
    Rule("has(self.claimName) != has(self.size)", "set exactly one of claimName and size"),
    Rule(
        "!has(self.claimName) || !has(self.storageClassName)",
        "storageClassName is for a new claim; with claimName leave it out",
    ),
    Rule(
        "!has(self.size) || !isQuantity(string(self.size)) || quantity(string(self.size)).isGreaterThan(quantity('0'))",
        "must be more than zero",
        ".size",
    ),
)

_GATE_IS_SET = " || ".join(
    ["self.gate.improvesBase"]
    + [f"has(self.gate.{field.alias})" for name, field in Gate.model_fields.items() if name != "improves_base"]
)

RULES: Mapping[type[BaseModel], tuple[Rule, ...]] = {
    ModelSource: (ONE_SOURCE, *PATH_RULES),
    Dataset: (ONE_SOURCE, *PATH_RULES),
    EvaluationDataset: (ONE_SOURCE, *PATH_RULES),
    Toleration: (
        Rule(
            "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
            "with operator Exists leave value out",
        ),
        Rule(
            "(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
            "without a key set operator to Exists",
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds is for effect NoExecute",
        ),
    ),
    Resources: (
        _names_match("requests", REQUEST_PATTERN, REQUEST_RULE),
        _names_match("limits", LIMIT_PATTERN, LIMIT_RULE),
        Rule(
            "!has(self.requests) || !has(self.limits) || self.requests.all(name, !(name in self.limits) || "
            "!isQuantity(string(self.requests[name])) || !isQuantity(string(self.limits[name])) || "
            "!quantity(string(self.requests[name])).isGreaterThan(quantity(string(self.limits[name]))))",
            "each request must be at most its limit",
        ),
    ),
    Compute: (
        Rule(
            "self.device != 'gpu' || !has(self.processesPerNode)",
            "processesPerNode is for device cpu; with device gpu set gpusPerNode",
        ),
        Rule(
            "self.device != 'cpu' || !has(self.gpusPerNode)",
            "gpusPerNode is for device gpu; with device cpu set processesPerNode",
        ),
        _names_match("nodeSelector", LABEL_KEY_PATTERN, "is no label key"),
        Rule(
            f"!has(self.env) || !self.env.exists(entry, entry.name in {list(SECRET_NAMES)})",
            f"{' and '.join(SECRET_NAMES)} are tokens: put them into the Secret that secretName names",
            ".env",
        ),
        Rule(
            f"!has(self.env) || !self.env.exists(entry, entry.name.matches({_quoted(RESERVED_VARIABLE_PATTERN)}))",
            f"FINETUNE_*, PET_* and {JOB_COMPLETION_INDEX} are set by the operator",
            ".env",
        ),
    ),
    Evaluation: (
        Rule(
            # NB: a default is checked before the defaults inside of it are filled in, so that there is no gate yet.
            f"!has(self.gate) || !({_GATE_IS_SET}) || "
            "(self.enabled && ((has(self.datasets) && size(self.datasets) > 0) || "
            "(self.holdout.share > 0.0 && self.holdout.maxRows > 0)))",
            GATE_NEEDS_ROWS,
        ),
    ),
    SharedStorage: STORAGE_RULES,
    NetworkStorage: STORAGE_RULES,
    RunPolicy: (
        Rule(
            # NB: a schema's pattern is not asked about a whole number.
            f"!has(self.budget) || (string(self.budget).matches({_quoted(BUDGET_PATTERN)}) && "
            "string(self.budget).matches('[1-9]'))",
            "is an amount above zero with two decimals at most, such as 250 or '99.50'",
            ".budget",
        ),
    ),
    FineTuneJobSpec: (
        Rule(
            "!has(self.tracking) || !has(self.tracking.wandb) || self.tracking.wandb.mode != 'online' || "
            "has(self.secretName)",
            "tracking.wandb needs secretName, a Secret with WANDB_API_KEY; or set its mode to offline",
        ),
        Rule(
            "!has(self.export) || !has(self.export.pushTo) || has(self.secretName)",
            "export.pushTo needs secretName, a Secret with an HF_TOKEN that may write",
        ),
    ),
}

NAME_RULE = Rule(
    f"self.metadata.name.size() <= {names.MAX_LABEL_CHARACTERS} && "
    f"self.metadata.name.matches({_quoted(names.JOB_NAME_PATTERN)})",
    names.JOB_NAME_RULE,
    ".metadata.name",
)
MUTABLE_FIELDS = frozenset({"runPolicy", "suspend"})


def _unchanged(field: str) -> str:
    """Return the expression that a field of the spec, which may be missing, is as it was."""
    new, old = f"self.spec.{field}", f"oldSelf.spec.{field}"
    return f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"


_FIXED_FIELDS = [
    field.alias for field in FineTuneJobSpec.model_fields.values() if field.alias and field.alias not in MUTABLE_FIELDS
]
IMMUTABLE_RULE = Rule(
    # Every write of a status asks this, so what is nearly always so, and soon known, comes first.
    "self.spec == oldSelf.spec || !has(oldSelf.status) || !has(oldSelf.status.conditions) || "
    "!oldSelf.status.conditions.exists(condition, condition.type == 'Accepted' && condition.status == 'True') || "
    f"({' && '.join(_unchanged(field) for field in _FIXED_FIELDS)})",
    "cannot be changed after the job was accepted, except for suspend and runPolicy; delete the job and apply it anew, "
    "or apply it under another name",
    ".spec",
)
ROOT_RULES = (NAME_RULE, IMMUTABLE_RULE)
