"""From a plan to the manifests of its objects, as plain dictionaries for server-side apply.

Pure, one file for each noun: `storage`, `config`, `prepare`, `service`, `indexed_job`, `pytorch_job`, `evaluate`;
`gang` chooses the back-end, `training_pod` is the pod that both run, `pod` what all stages share, `manifest` what every
object has.

A manifest carries the digest of its own content. An object that has the same digest is as it should be. NB: a Job
cannot be changed once it is made (its template is immutable), so a Job is made when it is missing and then left alone;
so is a claim, which keeps what is on it.
"""

from finetune_operator.build.config import build_config_map
from finetune_operator.build.evaluate import build_evaluate_job
from finetune_operator.build.gang import build_gang, build_workloads
from finetune_operator.build.indexed_job import build_train_jobs
from finetune_operator.build.manifest import Manifest
from finetune_operator.build.prepare import build_prepare_job
from finetune_operator.build.service import build_service
from finetune_operator.build.storage import build_claims
from finetune_operator.plan import Plan
from finetune_trainer.contract.outcome import Export

__all__ = [
    "build_all",
    "build_claims",
    "build_config_map",
    "build_evaluate_job",
    "build_gang",
    "build_prepare_job",
    "build_service",
    "build_train_jobs",
    "build_workloads",
]


def build_all(plan: Plan, attempt: int) -> list[Manifest]:
    """Return every manifest that a job of one attempt needs, in the order in which they are made."""
    evaluated = plan.job.spec.evaluation.enabled or plan.job.spec.export != Export()
    return [
        *build_claims(plan),
        build_config_map(plan),
        build_prepare_job(plan),
        *build_gang(plan, attempt),
        *([build_evaluate_job(plan)] if evaluated else []),
    ]
