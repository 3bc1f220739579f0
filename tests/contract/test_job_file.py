"""The job file is one contract for two readers."""

from pydantic import BaseModel

from finetune_operator.api.spec import Compute, FineTuneJobSpec
from finetune_trainer.contract.job import CLUSTER_COMPUTE_FIELDS, CLUSTER_FIELDS
from finetune_trainer.contract.spec import TrainerCompute, TrainerSpec


def _names_in_yaml(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def test_the_trainer_passes_over_just_the_fields_that_only_the_operator_reads() -> None:
    assert _names_in_yaml(FineTuneJobSpec) - _names_in_yaml(TrainerSpec) == CLUSTER_FIELDS
    assert _names_in_yaml(Compute) - _names_in_yaml(TrainerCompute) == CLUSTER_COMPUTE_FIELDS
