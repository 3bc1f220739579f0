"""From a plan to the manifests of its objects, as plain dictionaries for server-side apply.

Pure, one file for each noun: `storage`, `config`, `prepare`, `service`, `indexed_job`, `pytorch_job`, `evaluate`;
`training_pod` is the pod that both back-ends run, `pod` what all stages share, `manifest` what every object has.
`wanted` names what is to be there, so that only what is missing need be built.

A manifest carries the digest of its own content. An object that has the same digest is as it should be. NB: a Job
cannot be changed once it is made (its template is immutable), so a Job is made when it is missing and then left alone;
so is a claim, which keeps what is on it.
"""

from finetune_operator.build import wanted
from finetune_operator.build.manifest import Manifest
from finetune_operator.build.wanted import Wanted
from finetune_operator.plan import Plan
from finetune_trainer.contract.outcome import Export

__all__ = ["Manifest", "Wanted", "build_all", "wanted"]


def build_all(plan: Plan, attempt: int) -> list[Manifest]:
    """Return every manifest that a job of one attempt needs, in the order in which they are made."""
    is_evaluated = plan.job.spec.evaluation.enabled or plan.job.spec.export != Export()
    objects = [
        *wanted.shared_by_stages(plan),
        wanted.prepare_job(plan),
        *wanted.gang(plan, attempt),
        *([wanted.evaluate_job(plan)] if is_evaluated else []),
    ]
    return [item.build() for item in objects]
