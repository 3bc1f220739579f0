"""What is to be there for a job: the key of each object, and its manifest for whoever needs it.

Nearly every look at a job finds all of its objects there. To build them nevertheless was half the work of a look.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from finetune_operator import names
from finetune_operator.api.spec import Backend
from finetune_operator.build.config import build_config_map
from finetune_operator.build.evaluate import build_evaluate_job
from finetune_operator.build.indexed_job import build_train_job
from finetune_operator.build.manifest import Manifest, digest_of
from finetune_operator.build.prepare import build_prepare_job
from finetune_operator.build.pytorch_job import build_pytorch_job
from finetune_operator.build.service import build_service
from finetune_operator.build.storage import build_claim
from finetune_operator.plan import NewClaim, Plan
from finetune_operator.store import ObjectKey


class Wanted(NamedTuple):
    """An object that is to be there."""

    key: ObjectKey
    builder: Callable[[], Manifest]
    plan: Plan

    def build(self) -> Manifest:
        """Return its manifest."""
        manifest = self.builder()
        self.plan.digests[self.key] = digest_of(manifest)
        return manifest

    def digest(self) -> str:
        """Return the digest of its manifest, which is built for that only once."""
        known = self.plan.digests.get(self.key)
        return known if known is not None else digest_of(self.build())


def shared_by_stages(plan: Plan) -> list[Wanted]:
    """Return what every stage needs: the claims that the operator makes, and the ConfigMap with the job."""
    claims = [_claim(plan, disk.claim_name, disk.new) for disk in plan.disks if disk.new is not None]
    return [*claims, Wanted(ObjectKey("ConfigMap", names.config_map(plan.name)), partial(build_config_map, plan), plan)]


def prepare_job(plan: Plan) -> Wanted:
    """Return the Job that prepares."""
    return Wanted(ObjectKey("Job", names.prepare_job(plan.name)), partial(build_prepare_job, plan), plan)


def gang(plan: Plan, attempt: int) -> list[Wanted]:
    """Return everything that runs an attempt, in the order in which it is made."""
    if plan.backend is Backend.PYTORCH_JOB:
        return workloads(plan, attempt)  # the training-operator makes the Services itself
    service = ObjectKey("Service", names.gang_service(plan.name, attempt))
    return [Wanted(service, partial(build_service, plan, attempt), plan), *workloads(plan, attempt)]


def workloads(plan: Plan, attempt: int) -> list[Wanted]:
    """Return what makes the pods of an attempt: that of rank 0 first."""
    if plan.backend is Backend.PYTORCH_JOB:
        key = ObjectKey(names.PYTORCH_JOB_KIND, names.pytorch_job(plan.name, attempt))
        return [Wanted(key, partial(build_pytorch_job, plan, attempt), plan)]
    return [
        Wanted(
            ObjectKey("Job", names.train_job(plan.name, attempt, role.name)),
            partial(build_train_job, plan, role, attempt),
            plan,
        )
        for role in plan.roles
    ]


def evaluate_job(plan: Plan) -> Wanted:
    """Return the Job that evaluates."""
    return Wanted(ObjectKey("Job", names.evaluate_job(plan.name)), partial(build_evaluate_job, plan), plan)


def _claim(plan: Plan, name: str, new: NewClaim) -> Wanted:
    return Wanted(ObjectKey("PersistentVolumeClaim", name), partial(build_claim, plan, name, new), plan)
