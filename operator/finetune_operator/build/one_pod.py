"""A Job of one pod, which prepares or evaluates."""

from finetune_operator import names
from finetune_operator.build.manifest import Manifest, metadata, with_digest
from finetune_operator.names import Label, Stage
from finetune_operator.plan import Plan


def one_pod_job(plan: Plan, name: str, stage: Stage, pod_spec: Manifest, queue_labels: dict[str, str]) -> Manifest:
    """Return a Job that runs one pod once.

    Args:
        plan: the job's plan.
        name: name of the Job.
        stage: what it does.
        pod_spec: spec of its pod.
        queue_labels: labels that put it into a queue; empty where it holds nothing that is queued for.
    """
    labels = {Label.STAGE.value: stage.value}
    return with_digest(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata(plan, name, labels | queue_labels),
            "spec": {
                # A second try is the operator's decision, which knows why the first one failed.
                "backoffLimit": 0,
                "template": {"metadata": {"labels": names.job_labels(plan.name) | labels}, "spec": pod_spec},
            },
        }
    )
