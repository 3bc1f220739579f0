"""A FineTuneJob as commands look at it: who it is, what its user wrote, what is told of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from finetune_cli.errors import CommandError
from finetune_operator import names
from finetune_operator.api.job import FineTuneJob
from finetune_operator.api.status import ConditionStatus, ConditionType, FineTuneJobStatus, Phase
from finetune_operator.errors import InvalidJob

ENDS = (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True)
class Job:
    """A FineTuneJob; its spec as it is written, because a newer cluster may know more fields than we do."""

    name: str
    namespace: str
    uid: str
    created: datetime
    generation: int
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    status: FineTuneJobStatus

    @property
    def has_ended(self) -> bool:
        """Whether it succeeded or failed."""
        return self.status.phase in ENDS

    @property
    def phase(self) -> str:
        """Where it stands, in one word, also before the operator has said so."""
        return str(self.status.phase or "New")

    @property
    def suspended(self) -> bool:
        """Whether its user wants it suspended."""
        return bool(self.spec.get("suspend", False))

    @property
    def nodes(self) -> int:
        """Nodes that it trains on."""
        return int(self.compute.get("nodes", 1))

    @property
    def processes_per_node(self) -> int:
        """Processes of a node: one a GPU, or as many CPU processes as were asked for."""
        field = "gpusPerNode" if self.on_gpus else "processesPerNode"
        return int(self.compute.get(field) or 1)

    @property
    def on_gpus(self) -> bool:
        """Whether it trains on GPUs."""
        return bool(self.compute.get("device", "gpu") == "gpu")

    @property
    def compute(self) -> Mapping[str, Any]:
        """The group `compute` of its spec."""
        return self.spec.get("compute") or {}

    @property
    def shared_claim(self) -> str:
        """The claim on the shared filesystem."""
        named = self.spec["storage"]["shared"].get("claimName")
        return str(named or names.shared_claim(self.name))

    @property
    def network_claim(self) -> str | None:
        """The claim on the network disk, if it has one."""
        network = self.spec["storage"].get("network")
        return None if network is None else str(network.get("claimName") or names.network_claim(self.name))

    @property
    def explanation(self) -> str:
        """What the job says of where it stands: the condition that is to be read now."""
        by_type = {condition.type: condition for condition in self.status.conditions}
        failed = by_type.get(ConditionType.FAILED)
        if failed is not None and failed.status is ConditionStatus.TRUE:
            return failed.message
        reason = self.status.reason
        for condition in reversed(self.status.conditions):
            if condition.reason == reason:
                return condition.message
        return ""


def read_job(body: Mapping[str, Any]) -> Job:
    """Read a FineTuneJob as the API server sent it.

    Raises:
        CommandError: its status is none that this version can read.
    """
    metadata = body["metadata"]
    try:
        status = FineTuneJobStatus.model_validate(body.get("status") or {})
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise CommandError(
            f"FineTuneJob {metadata['name']}: status.{field} cannot be read; this kubectl finetune is older or newer "
            "than the operator"
        ) from error
    return Job(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        generation=metadata.get("generation", 1),
        labels=metadata.get("labels") or {},
        spec=body["spec"],
        status=status,
    )


def typed(body: Mapping[str, Any]) -> FineTuneJob:
    """Return the same with its spec as this version knows it.

    Raises:
        CommandError: the spec has fields that this version does not know.
    """
    try:
        return FineTuneJob.parse(body)
    except InvalidJob as error:
        raise CommandError(
            f"FineTuneJob {body['metadata']['name']} cannot be read by this version: {'; '.join(error.problems)}"
        ) from error
