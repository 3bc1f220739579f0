"""The PyTorchJob that trains: the same roles as those of the Indexed Jobs, run by Kubeflow's training-operator.

https://www.kubeflow.org/docs/components/trainer/legacy-v1/user-guides/pytorch/

It makes the pods, one Service for each, and tells every pod its place by the PET_* variables, the node's rank among
them. What else it can do is left off: a gang that fails is ended, and the operator starts the next one.
"""

from finetune_operator import names
from finetune_operator.build.manifest import Manifest, metadata, with_digest
from finetune_operator.build.training_pod import training_pod_template, workload_labels
from finetune_operator.names import RoleName
from finetune_operator.plan import Plan, Role
from finetune_trainer.contract.environment import RENDEZVOUS_PORT

REPLICA_TYPES = {RoleName.LEADER: "Master", RoleName.WORKER: "Worker"}


def build_pytorch_job(plan: Plan, attempt: int) -> Manifest:
    """Return the PyTorchJob of an attempt."""
    return with_digest(
        {
            "apiVersion": f"{names.PYTORCH_JOB_GROUP}/{names.PYTORCH_JOB_VERSION}",
            "kind": names.PYTORCH_JOB_KIND,
            "metadata": metadata(plan, names.pytorch_job(plan.name, attempt), workload_labels(plan, attempt)),
            "spec": {
                "nprocPerNode": str(plan.num_processes_per_node),
                # NB: no deadline: the training-operator looks at its own only when something else wakes it.
                # No `suspend`: that is Kueue's to write.
                "runPolicy": {"backoffLimit": 0, "cleanPodPolicy": "Running"},
                "pytorchReplicaSpecs": {
                    REPLICA_TYPES[role.name]: _replica_spec(plan, role, attempt) for role in plan.roles
                },
            },
        }
    )


def _replica_spec(plan: Plan, role: Role, attempt: int) -> Manifest:
    template = training_pod_template(
        plan,
        role,
        attempt,
        variables={},
        # The training-operator makes MASTER_PORT of it.
        ports=[{"name": names.PYTORCH_PORT, "containerPort": RENDEZVOUS_PORT, "protocol": "TCP"}],
        container_name=names.PYTORCH_CONTAINER,
    )
    # It stands in the replica's spec; in the template, too, it would be warned of in an Event for each pod.
    del template["spec"]["restartPolicy"]
    return {"replicas": role.nodes, "restartPolicy": "Never", "template": template}
