"""The pod that trains, and the labels of what makes it: alike in every back-end."""

from collections.abc import Mapping, Sequence

from finetune_operator import names
from finetune_operator.build import pod
from finetune_operator.build.manifest import Manifest
from finetune_operator.names import Label, Stage
from finetune_operator.plan import Plan, Role
from finetune_trainer.contract import environment, series


def gang_labels(attempt: int) -> dict[str, str]:
    """Return the labels of an attempt's objects, besides those that every child of a job has."""
    return {Label.STAGE.value: Stage.TRAIN.value, Label.ATTEMPT.value: str(attempt)}


def workload_labels(plan: Plan, attempt: int) -> dict[str, str]:
    """Return the labels of what makes an attempt's pods: with those of a queue, which decides when it may."""
    return gang_labels(attempt) | plan.queue_labels


def training_pod_template(
    plan: Plan,
    role: Role,
    attempt: int,
    *,
    variables: Mapping[str, str],
    ports: Sequence[Manifest] = (),
    container_name: str = names.CONTAINER,
) -> Manifest:
    """Return the template of a role's pods.

    Args:
        plan: the job's plan.
        role: what the pods do in the gang.
        attempt: number of the attempt.
        variables: how a pod finds its gang, as far as the back-end does not tell it.
        ports: ports of the container besides that of its metrics.
        container_name: name of the container, where the back-end expects one.
    """
    grace_seconds = plan.job.spec.run_policy.termination_grace_period_seconds
    ours = {environment.ATTEMPT: str(attempt), environment.TERMINATION_GRACE_SECONDS: str(grace_seconds)}
    spec = pod.pod_spec(
        plan,
        verb="train",
        mounts=role.mounts,
        variables={**variables, **ours},
        resources=pod.training_resources(plan),
        capabilities=pod.training_capabilities(plan),
        ports=[
            {"name": series.METRICS_PORT_NAME, "containerPort": series.METRICS_PORT, "protocol": "TCP"},
            *ports,
        ],
        container_name=container_name,
    )
    labels = names.job_labels(plan.name) | gang_labels(attempt) | {Label.ROLE.value: role.name.value}
    return {
        "metadata": {"labels": labels},
        "spec": spec | {"topologySpreadConstraints": [_spread(plan, attempt)]},
    }


def _spread(plan: Plan, attempt: int) -> Manifest:
    """Nodes are machines: pods of a gang are spread over as many as there are.

    Not more than a wish, because a gang computes the same on fewer machines, and a rule would leave it waiting beside
    GPUs that are free.
    """
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": names.gang_selector(plan.name, attempt)},
    }
