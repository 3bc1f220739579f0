"""The Job that evaluates: one pod that scores base and tuned model, judges the gate and exports, on one GPU at most."""

from finetune_operator import names
from finetune_operator.build import pod
from finetune_operator.build.manifest import Manifest, metadata, with_digest
from finetune_operator.names import Label, Stage
from finetune_operator.plan import Plan


def build_evaluate_job(plan: Plan) -> Manifest:
    """Return the Job that evaluates what a job has trained."""
    labels = {Label.STAGE.value: Stage.EVALUATE.value}
    return with_digest(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata(plan, names.evaluate_job(plan.name), labels | plan.queue_labels),
            "spec": {
                # A second try is the operator's decision, which knows why the first one failed.
                "backoffLimit": 0,
                "template": {
                    "metadata": {"labels": names.job_labels(plan.name) | labels},
                    "spec": pod.pod_spec(
                        plan,
                        verb="evaluate",
                        mounts=plan.shared_mounts,
                        variables={},
                        resources=pod.evaluating_resources(plan),
                    ),
                },
            },
        }
    )
