"""The Job that prepares: one pod without a GPU that downloads, validates, tokenises and packs."""

from finetune_operator import names
from finetune_operator.build import pod
from finetune_operator.build.manifest import Manifest, metadata, with_digest
from finetune_operator.names import Label, Stage
from finetune_operator.plan import Plan
from finetune_trainer.contract import environment


def build_prepare_job(plan: Plan) -> Manifest:
    """Return the Job that prepares a job's model and data."""
    labels = {Label.STAGE.value: Stage.PREPARE.value}
    variables = {}
    if plan.gpu_memory_bytes is not None:
        variables[environment.GPU_MEMORY_BYTES] = str(plan.gpu_memory_bytes)
    return with_digest(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata(plan, names.prepare_job(plan.name), labels),
            "spec": {
                # A second try is the operator's decision, which knows why the first one failed.
                "backoffLimit": 0,
                "template": {
                    "metadata": {"labels": names.job_labels(plan.name) | labels},
                    "spec": pod.pod_spec(
                        plan,
                        verb="prepare",
                        mounts=plan.shared_mounts,
                        variables=variables,
                        resources={"requests": {"cpu": plan.prepare_cpu, "memory": plan.prepare_memory}},
                    ),
                },
            },
        }
    )
