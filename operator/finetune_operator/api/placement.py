"""Where pods may run: tolerations and affinity, in the words of a pod's own spec.

https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/

What can be said wrongly in one field is checked here. Which fields of an affinity go together is checked by the API
server when the pods are made, and the job tells its words.
"""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from finetune_trainer.contract.group import SpecModel

# https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
LABEL_KEY_PATTERN = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
LabelValue = Annotated[str, Field(pattern=r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$", max_length=63)]
TopologyKey = Annotated[str, Field(pattern=LABEL_KEY_PATTERN, min_length=1, max_length=317)]
_MAX_TERMS = 8
_MAX_VALUES = 64


class TolerationOperator(StrEnum):
    """How a toleration is compared with a taint."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(SpecModel):
    """A Kubernetes toleration; GPU nodes are often tainted."""

    key: str | None = Field(
        default=None,
        max_length=317,
        pattern=f"^$|{LABEL_KEY_PATTERN}",
        description="Taint key; empty with operator Exists is all.",
    )
    operator: TolerationOperator | None = Field(default=None, description="`Exists` or `Equal`, which is the default.")
    value: LabelValue | None = Field(default=None, description="Taint value.")
    effect: TaintEffect | None = Field(default=None, description="Effect that is tolerated; empty is all.")
    toleration_seconds: int | None = Field(
        default=None, ge=0, le=2**31 - 1, description="How long a NoExecute taint is tolerated, in seconds."
    )

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.operator is TolerationOperator.EXISTS and self.value:
            raise ValueError("with operator Exists leave value out")
        if not self.key and self.operator is not TolerationOperator.EXISTS:
            raise ValueError("without a key set operator to Exists")
        if self.toleration_seconds is not None and self.effect is not TaintEffect.NO_EXECUTE:
            raise ValueError("tolerationSeconds is for effect NoExecute")
        return self


class SelectorOperator(StrEnum):
    """How a label is compared. `Gt` and `Lt` are for nodes alone."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GREATER_THAN = "Gt"
    LESS_THAN = "Lt"


class Requirement(SpecModel):
    """What a label has to be."""

    key: str = Field(pattern=LABEL_KEY_PATTERN, max_length=317, description="Label key, or name of a field.")
    operator: SelectorOperator = Field(description="How it is compared.")
    values: tuple[LabelValue, ...] = Field(
        default=(), max_length=_MAX_VALUES, description="With what; empty for `Exists` and `DoesNotExist`."
    )


Requirements = Annotated[tuple[Requirement, ...], Field(max_length=_MAX_TERMS)]


class NodeSelectorTerm(SpecModel):
    """A description of nodes; all that it says has to be so."""

    match_expressions: Requirements = Field(default=(), description="By labels.")
    match_fields: Requirements = Field(default=(), description="By fields, of which `metadata.name` is the only one.")


class NodeSelector(SpecModel):
    """Descriptions of nodes, of which one has to fit."""

    node_selector_terms: tuple[NodeSelectorTerm, ...] = Field(
        min_length=1, max_length=_MAX_TERMS, description="The descriptions."
    )


class PreferredNode(SpecModel):
    """Nodes that are better than others."""

    weight: int = Field(ge=1, le=100, description="How much better.")
    preference: NodeSelectorTerm = Field(description="Which.")


class NodeAffinity(SpecModel):
    """To which nodes pods are drawn."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = Field(
        default=None, description="Nodes that a pod must be on."
    )
    preferred_during_scheduling_ignored_during_execution: tuple[PreferredNode, ...] = Field(
        default=(), max_length=_MAX_TERMS, description="Nodes that it had better be on."
    )


class LabelSelector(SpecModel):
    """A description of objects by their labels; all that it says has to be so."""

    match_labels: dict[str, LabelValue] = Field(default_factory=dict, max_length=16, description="Labels they have.")
    match_expressions: Requirements = Field(default=(), description="What their labels have to be.")


class PodAffinityTerm(SpecModel):
    """Pods to be near to, or far from."""

    topology_key: TopologyKey = Field(description="Node label whose value says which nodes are near each other.")
    label_selector: LabelSelector | None = Field(default=None, description="Which pods.")
    namespaces: tuple[Annotated[str, Field(max_length=63)], ...] = Field(
        default=(), max_length=16, description="In which namespaces; the job's own when none is named."
    )
    namespace_selector: LabelSelector | None = Field(default=None, description="The same by the namespaces' labels.")


class PreferredPods(SpecModel):
    """Pods that it is better to be near to, or far from."""

    weight: int = Field(ge=1, le=100, description="How much better.")
    pod_affinity_term: PodAffinityTerm = Field(description="Which.")


class PodAffinity(SpecModel):
    """Which pods a pod has to be near to, or far from."""

    required_during_scheduling_ignored_during_execution: tuple[PodAffinityTerm, ...] = Field(
        default=(), max_length=_MAX_TERMS, description="All of these, without exception."
    )
    preferred_during_scheduling_ignored_during_execution: tuple[PreferredPods, ...] = Field(
        default=(), max_length=_MAX_TERMS, description="These, as far as may be."
    )


class Affinity(SpecModel):
    """Where pods would rather be, or must be."""

    node_affinity: NodeAffinity | None = Field(default=None, description="To which nodes they are drawn.")
    pod_affinity: PodAffinity | None = Field(default=None, description="To which pods they are drawn.")
    pod_anti_affinity: PodAffinity | None = Field(default=None, description="From which pods they keep away.")
