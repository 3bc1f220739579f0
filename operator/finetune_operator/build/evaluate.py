"""The Job that evaluates: one pod that scores base and tuned model, judges the gate and exports, on one GPU at most."""

from finetune_operator import names
from finetune_operator.build import pod
from finetune_operator.build.manifest import Manifest
from finetune_operator.build.one_pod import one_pod_job
from finetune_operator.names import Stage
from finetune_operator.plan import Plan


def build_evaluate_job(plan: Plan) -> Manifest:
    """Return the Job that evaluates what a job has trained."""
    pod_spec = pod.pod_spec(
        plan,
        verb="evaluate",
        mounts=plan.shared_mounts,
        variables={},
        resources=pod.evaluating_resources(plan),
    )
    return one_pod_job(plan, names.evaluate_job(plan.name), Stage.EVALUATE, pod_spec, plan.queue_labels)
