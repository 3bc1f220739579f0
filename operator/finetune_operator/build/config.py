"""The ConfigMap that carries the job to its pods."""

from finetune_operator import names
from finetune_operator.build.manifest import Manifest, metadata, with_digest
from finetune_operator.plan import Plan
from finetune_trainer.contract import paths


def build_config_map(plan: Plan) -> Manifest:
    """Return the ConfigMap with the job as the trainer reads it, every default written out."""
    return with_digest(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(plan, names.config_map(plan.name)),
            "data": {paths.JOB_FILE.name: plan.job_file},
        }
    )
