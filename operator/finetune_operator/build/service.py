"""The headless Service under which the pods of an attempt find each other."""

from finetune_operator import names
from finetune_operator.build.manifest import Manifest, metadata, with_digest
from finetune_operator.names import Label, Stage
from finetune_operator.plan import Plan
from finetune_trainer.contract.environment import RENDEZVOUS_PORT


def build_service(plan: Plan, attempt: int) -> Manifest:
    """Return the headless Service of an attempt: it gives each of the gang's pods a DNS name."""
    labels = {Label.STAGE.value: Stage.TRAIN.value, Label.ATTEMPT.value: str(attempt)}
    return with_digest(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(plan, names.gang_service(plan.name, attempt), labels),
            "spec": {
                "clusterIP": "None",
                # The pods meet before any of them is ready.
                "publishNotReadyAddresses": True,
                "selector": names.gang_selector(plan.name, attempt),
                "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT, "protocol": "TCP"}],
            },
        }
    )
