"""The gang of an attempt, whichever back-end runs it."""

from finetune_operator.api.spec import Backend
from finetune_operator.build.indexed_job import build_train_jobs
from finetune_operator.build.manifest import Manifest
from finetune_operator.build.pytorch_job import build_pytorch_job
from finetune_operator.build.service import build_service
from finetune_operator.plan import Plan


def build_gang(plan: Plan, attempt: int) -> list[Manifest]:
    """Return everything that runs an attempt, in the order in which it is made."""
    if plan.backend is Backend.PYTORCH_JOB:
        return build_workloads(plan, attempt)  # the training-operator makes the Services itself
    return [build_service(plan, attempt), *build_workloads(plan, attempt)]


def build_workloads(plan: Plan, attempt: int) -> list[Manifest]:
    """Return what makes the pods of an attempt: that of rank 0 first."""
    if plan.backend is Backend.PYTORCH_JOB:
        return [build_pytorch_job(plan, attempt)]
    return build_train_jobs(plan, attempt)
