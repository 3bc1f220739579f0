"""The Job that prepares: one pod without a GPU that downloads, validates, tokenises and packs."""

from finetune_operator import names
from finetune_operator.build import pod
from finetune_operator.build.manifest import Manifest
from finetune_operator.build.one_pod import one_pod_job
from finetune_operator.names import Stage
from finetune_operator.plan import Plan
from finetune_trainer.contract import environment


def build_prepare_job(plan: Plan) -> Manifest:
    """Return the Job that prepares a job's model and data."""
    variables = {}
    if plan.gpu_memory_bytes is not None:
        variables[environment.GPU_MEMORY_BYTES] = str(plan.gpu_memory_bytes)
    pod_spec = pod.pod_spec(
        plan,
        verb="prepare",
        mounts=plan.shared_mounts,
        variables=variables,
        resources={"requests": {"cpu": plan.prepare_cpu, "memory": plan.prepare_memory}},
    )
    return one_pod_job(plan, names.prepare_job(plan.name), Stage.PREPARE, pod_spec, {})
