"""The end of the evaluate stage: the model card always, a merged model and an upload where the job asks for them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from finetune_trainer.architecture import read_shape
from finetune_trainer.cache import write_atomically
from finetune_trainer.contract.evaluation import EvaluationReport, ExportReport
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import PreparedReport, TrainedReport
from finetune_trainer.data.template import ChatTemplate, load_tokenizer
from finetune_trainer.export.card import CardContent, write_card
from finetune_trainer.export.merge import Merged, merge
from finetune_trainer.export.serving import vllm_command, vllm_merged_command
from finetune_trainer.export.upload import upload_adapter
from finetune_trainer.hub import Hub
from finetune_trainer.inference.adapter import read_adapter
from finetune_trainer.inference.dialect import find_call_style
from finetune_trainer.storage import storage_errors

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"


@dataclass(frozen=True)
class Result:
    """What the stages before found."""

    prepared: PreparedReport
    trained: TrainedReport
    evaluated: EvaluationReport | None  # None: nothing was scored

    @property
    def is_good(self) -> bool:
        """Whether no gate stands against it."""
        return self.evaluated is None or self.evaluated.gate_met


def export(job: TrainerJob, paths: JobPaths, result: Result, environment: Mapping[str, str]) -> ExportReport:
    """Write the model card and, unless a gate is not met, what `spec.export` asks for.

    Args:
        job: what was trained.
        paths: where its files are.
        result: what the stages before found.
        environment: HF_TOKEN and HF_ENDPOINT for an upload.

    Raises:
        TrainerError: STORAGE_FULL, STORAGE_NOT_WRITABLE, UPLOAD_FAILED, or what is wrong with base model or adapter.
    """
    wanted = job.spec.export
    merged = write_merged(paths, result.prepared) if wanted.merged and result.is_good else None
    commands = _commands(job, paths, result.prepared, merged)
    card = write_card(CardContent(job, result.prepared, result.trained, result.evaluated, commands))
    with storage_errors(paths.adapter):
        write_atomically(paths.adapter / CARD_FILE, card)
    pushed_to = None
    if wanted.push_to is not None and result.is_good:
        message = f"{job.name}: {result.trained.steps} steps"
        pushed_to = upload_adapter(Hub.of(environment), wanted.push_to, paths.adapter, message)
    return ExportReport(
        model_card_path=str((paths.adapter / CARD_FILE).relative_to(paths.shared)),
        merged_path=str(paths.merged.relative_to(paths.shared)) if merged else None,
        merged_bytes=merged.num_bytes if merged else None,
        merged_digest=merged.digest if merged else None,
        pushed_to=pushed_to,
    )


def write_merged(paths: JobPaths, prepared: PreparedReport) -> Merged:
    """Write base and adapter as one model beside the adapter."""
    base = paths.shared / prepared.model_path
    shape = read_shape(base)
    merged = merge(base, shape, read_adapter(paths.adapter, shape, prepared.model.partition("@")[0]), paths.merged)
    logger.info("merged model: %s, %.1f GB", paths.merged, merged.num_bytes / 1e9)
    return merged


def _commands(job: TrainerJob, paths: JobPaths, prepared: PreparedReport, merged: Merged | None) -> tuple[str, ...]:
    directory = paths.shared / prepared.model_path
    style = find_call_style(ChatTemplate(load_tokenizer(directory)))
    model = str(directory) if job.spec.model.hugging_face is None else prepared.model.partition("@")[0]
    commands = [vllm_command(model, job.name, str(paths.adapter), job.spec.lora.rank, style)]
    if merged is not None:
        commands.append(vllm_merged_command(str(paths.merged), job.name, style))
    return tuple(command for command in commands if command is not None)
