"""The Indexed Jobs that train: one for each role of the gang, a pod for each node."""

from finetune_operator import names
from finetune_operator.build.manifest import Manifest, metadata, with_digest
from finetune_operator.build.training_pod import training_pod_template, workload_labels
from finetune_operator.names import Label
from finetune_operator.plan import Plan, Role
from finetune_trainer.contract import environment
from finetune_trainer.contract.termination import STOPPED_EXIT_CODE


def build_train_job(plan: Plan, role: Role, attempt: int) -> Manifest:
    """Return the Job that runs a role of an attempt."""
    labels = workload_labels(plan, attempt) | {Label.ROLE.value: role.name.value}
    template = training_pod_template(plan, role, attempt, variables=_gang_variables(plan, role, attempt))
    template["spec"]["subdomain"] = names.gang_service(plan.name, attempt)
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(plan, names.train_job(plan.name, attempt, role.name), labels),
        "spec": {
            "completionMode": "Indexed",
            "completions": role.nodes,
            "parallelism": role.nodes,
            # A gang is whole or it is nothing: one pod that fails ends the attempt, and the operator starts the next.
            "backoffLimit": 0,
            # A pod that is going away still holds its GPUs and its name; no second one beside it.
            "podReplacementPolicy": "Failed",
            **_queue_policy(plan),
            "template": template,
        },
    }
    return with_digest(manifest)


def _queue_policy(plan: Plan) -> Manifest:
    """Let a Job survive that a queue suspends.

    NB: a suspended Job takes its pods out of the count of failures one by one, as it deletes them (deleteJobPods in
    https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/controller/job/job_controller.go). But a gang that is told
    to stop stops as a whole, so a pod may have ended before its turn, and the Job would have failed for good. Any other
    end of a pod ends the attempt, as ever.
    """
    if not plan.queue_labels:
        return {}
    told_to_stop = {"containerName": names.CONTAINER, "operator": "In", "values": [STOPPED_EXIT_CODE]}
    return {"podFailurePolicy": {"rules": [{"action": "Ignore", "onExitCodes": told_to_stop}]}}


def _gang_variables(plan: Plan, role: Role, attempt: int) -> dict[str, str]:
    first_job = names.train_job(plan.name, attempt, plan.roles[0].name)
    return {
        environment.NUM_NODES: str(plan.num_nodes),
        environment.PROCESSES_PER_NODE: str(plan.num_processes_per_node),
        environment.MASTER_ADDRESS: f"{names.pod_hostname(first_job, 0)}.{names.gang_service(plan.name, attempt)}",
        environment.MASTER_PORT: str(environment.RENDEZVOUS_PORT),
        # The node's rank is this plus JOB_COMPLETION_INDEX, which Kubernetes sets.
        environment.FIRST_NODE_RANK: str(role.first_rank),
    }
