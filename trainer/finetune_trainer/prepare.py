"""The prepare stage: a model and its data, found good and laid ready, before any GPU is held.

find the model -> read its shape -> find the data -> render, tokenise, pack -> plan -> write prepared.json
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from finetune_trainer import cache, hub
from finetune_trainer.architecture import ModelShape, read_shape
from finetune_trainer.contract import environment as names
from finetune_trainer.contract.dataset import ConversationSource, HuggingFaceDataset
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.spec import TrainerSpec
from finetune_trainer.contract.termination import PreparedReport, Reason
from finetune_trainer.data import packed
from finetune_trainer.data.build import Source, build_data
from finetune_trainer.data.page import render_page
from finetune_trainer.data.read import find_files
from finetune_trainer.data.render import Renderer
from finetune_trainer.data.report import REPORT_FILE, DataReport, describe
from finetune_trainer.data.rows import RowWork
from finetune_trainer.data.select import CARD_FILE, select_files
from finetune_trainer.data.template import DATE, TOKENIZER_FILES, load_tokenizer
from finetune_trainer.digests import digest_of
from finetune_trainer.errors import TrainerError
from finetune_trainer.own_place import check_place
from finetune_trainer.planner.memory import GIB
from finetune_trainer.planner.plan import TrainingPlan, make_plan
from finetune_trainer.processors import num_available_cpus
from finetune_trainer.storage import storage_errors
from finetune_trainer.weights import check_weights

logger = logging.getLogger(__name__)

# Part of the digest of prepared data: to be raised whenever equal input gives other tokens than before.
PIPELINE_VERSION = 4


def prepare(job: TrainerJob, paths: JobPaths, environment: Mapping[str, str]) -> PreparedReport:
    """Lay ready what `train` needs, and return the plan.

    Args:
        job: what to train.
        paths: where its files are.
        environment: HF_TOKEN, HF_ENDPOINT and FINETUNE_GPU_MEMORY_BYTES, each optional.

    Raises:
        TrainerError: with a reason and what to do about it.
    """
    spec = job.spec
    source = hub.Hub.of(environment)
    with storage_errors(paths.shared):
        model_name, model_directory = find_model(spec, paths, source)
        shape = read_shape(model_directory)
        check_weights(model_directory, shape)
        check_length(spec, shape)
        logger.info("model %s: %s, %s parameters", model_name, shape.family, f"{shape.num_parameters:,}")
        data_directory, data = prepare_data(spec, paths, source, model_directory, shape)
        plan = make_plan(shape, spec, data.sequences, _gpu_memory_bytes(environment))
        report = PreparedReport(
            model=model_name,
            model_family=shape.family,
            model_path=str(model_directory.relative_to(paths.shared)),
            data_path=str(data_directory.relative_to(paths.shared)),
            datasets=data.datasets,
            parameters=shape.num_parameters,
            trainable_parameters=shape.num_adapter_parameters(spec.lora),
            tokens=data.tokens,
            trained_tokens=data.trained_tokens,
            sequences=data.sequences,
            truncated_conversations=data.truncated_conversations,
            preflight=data.preflight.model_copy(
                update={"report_path": str(paths.report_page.relative_to(paths.shared))}
            ),
            world_size=spec.compute.world_size,
            global_batch=spec.global_batch,
            steps_per_epoch=plan.steps.steps_per_epoch,
            total_steps=plan.steps.total_steps,
            warmup_steps=plan.steps.warmup_steps,
            precision=plan.precision,
            sharding=plan.sharding,
            kernels=plan.kernels,
            activation_checkpointing=plan.activation_checkpointing,
            estimated_memory_bytes=plan.memory.total,
            notes=(*data.notes, *plan.notes),
        )
        cache.write_atomically(paths.report, data.model_dump_json(by_alias=True, indent=1))
        cache.write_atomically(paths.report_page, render_page(data, f"{job.namespace}/{job.name}", model_name))
        cache.write_atomically(paths.prepared, report.model_dump_json(by_alias=True, indent=1))
    _log_plan(report, plan)
    return report


# --- the model --------------------------------------------------------------------------------------------------------


def find_model(spec: TrainerSpec, paths: JobPaths, source: hub.Hub) -> tuple[str, Path]:
    """Return what the model is called, and its directory on the shared filesystem.

    Raises:
        TrainerError: MODEL_UNAVAILABLE or MODEL_UNSUPPORTED, or INVALID_SPEC for a path that leads where the job may
            not read.
    """
    if spec.model.path is not None:
        directory = paths.shared / spec.model.path
        if not directory.is_dir():
            raise TrainerError(
                Reason.MODEL_UNAVAILABLE,
                f"spec.model.path: there is no directory {spec.model.path} on the shared filesystem",
            )
        for part in (directory, *sorted(directory.iterdir())):
            check_place("spec.model.path", part, paths)
        return spec.model.path, directory
    assert spec.model.hugging_face is not None
    repository, revision = spec.model.hugging_face.repository, spec.model.hugging_face.revision
    if cached := hub.cached_model(paths.models, repository, revision):
        return f"{repository}@{revision}", cached
    snapshot = hub.look_up(source, "model", repository, revision)

    def check(directory: Path) -> None:
        # Before gigabytes of weights are downloaded.
        check_length(spec, read_shape(directory))
        Renderer(load_tokenizer(directory))

    return f"{repository}@{snapshot.commit}", hub.fetch_model(source, snapshot, paths.models, check)


def check_length(spec: TrainerSpec, shape: ModelShape) -> None:
    """Refuse sequences that are longer than the model can tell positions apart.

    Raises:
        TrainerError: INVALID_SPEC, naming the largest length that works.
    """
    length = spec.training.max_sequence_length
    if length > shape.max_positions:
        raise TrainerError(
            Reason.INVALID_SPEC,
            f"spec.training.maxSequenceLength is {length}, but the model reads {shape.max_positions} tokens at most: "
            f"set maxSequenceLength: {shape.max_positions} or less",
        )


# --- the data ---------------------------------------------------------------------------------------------------------


def prepare_data(
    spec: TrainerSpec, paths: JobPaths, source: hub.Hub, model_directory: Path, shape: ModelShape
) -> tuple[Path, DataReport]:
    """Return the directory of the packed data and the report about it, building both when they are not cached.

    Raises:
        TrainerError: DATA_UNAVAILABLE, DATA_INVALID, STORAGE_FULL, or MODEL_UNSUPPORTED for its tokenizer.
    """
    scored = spec.evaluation.datasets if spec.evaluation.enabled else ()
    sources = [find_source(dataset, paths, source) for dataset in (*scored, *spec.datasets)]
    entry = paths.datasets / data_digest(spec, sources, model_directory)
    with cache.locked(entry):
        if cache.is_ready(entry):
            logger.info("packed data is in the cache: %s", entry.name)
        else:
            partial = cache.partial_directory(entry)
            shutil.rmtree(partial, ignore_errors=True)
            try:
                renderer = Renderer(load_tokenizer(model_directory))
                work = RowWork(renderer, spec.training, _holdout_share(spec), shape.vocab_size)
                max_held_out = None if scored else spec.evaluation.holdout.max_rows
                build_data(sources, work, max_held_out, partial, num_available_cpus())
                cache.publish(entry)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    report = DataReport.model_validate_json((entry / REPORT_FILE).read_text(encoding="utf-8"))
    for line in describe(report):
        logger.info("%s", line)
    return entry, report


def _holdout_share(spec: TrainerSpec) -> float:
    evaluation = spec.evaluation
    is_held_out = evaluation.enabled and evaluation.holdout.max_rows > 0 and not evaluation.datasets
    return evaluation.holdout.share if is_held_out else 0.0


def find_source(dataset: ConversationSource, paths: JobPaths, source: hub.Hub) -> Source:
    """Find the files of a data set, downloading them when they are not cached.

    Raises:
        TrainerError: DATA_UNAVAILABLE, or INVALID_SPEC for a path that leads where the job may not read.
    """
    if dataset.path is not None:
        files = find_files(paths.shared / dataset.path)
        for file in files:
            check_place("spec.datasets[].path", file, paths)
        return Source(dataset, dataset.path, None, tuple((str(file.relative_to(paths.shared)), file) for file in files))
    assert dataset.hugging_face is not None
    return _find_on_hub(dataset, dataset.hugging_face, paths, source)


def _find_on_hub(dataset: ConversationSource, wanted: HuggingFaceDataset, paths: JobPaths, source: hub.Hub) -> Source:
    snapshot = hub.look_up(source, "dataset", wanted.repository, wanted.revision)
    sources = paths.datasets / "sources"
    card = ""
    if CARD_FILE in snapshot.sizes:
        directory = hub.fetch_files(source, snapshot, [CARD_FILE], sources / f"{snapshot.entry_name}.card")
        card = (directory / CARD_FILE).read_text(encoding="utf-8")
    files = select_files(wanted.repository, list(snapshot.sizes), card, wanted.subset, wanted.split)
    directory = hub.fetch_files(source, snapshot, files, sources / f"{snapshot.entry_name}.{_digest(files)[:12]}")
    return Source(
        dataset,
        wanted.repository,
        snapshot.commit,
        tuple((f"{wanted.repository}/{file}", directory / file) for file in files),
    )


def data_digest(spec: TrainerSpec, sources: list[Source], model_directory: Path) -> str:
    """Return a digest of everything that decides the packed data's content; the seed does not."""
    training = spec.training
    return _digest(
        {
            "pipeline": PIPELINE_VERSION,
            "layout": packed.LAYOUT_VERSION,
            "date": DATE,
            "maxSequenceLength": training.max_sequence_length,
            "overlong": training.overlong,
            "packing": training.packing,
            "holdout": [_holdout_share(spec), spec.evaluation.holdout.max_rows],
            "tokenizer": _tokenizer_digests(model_directory),
            "datasets": [
                {
                    "kind": type(source.dataset).__name__,
                    "settings": source.dataset.model_dump(mode="json", exclude={"hugging_face", "path"}),
                    "revision": source.revision,
                    # The files of a commit never change; a file at a path may.
                    "files": [(name, None if source.revision else digest_of(file)) for name, file in source.files],
                }
                for source in sources
            ],
        }
    )[:32]


def _tokenizer_digests(model_directory: Path) -> dict[str, str]:
    files = {file for pattern in TOKENIZER_FILES for file in model_directory.glob(pattern) if file.is_file()}
    return {str(file.relative_to(model_directory)): digest_of(file) for file in files}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- the plan ---------------------------------------------------------------------------------------------------------


def _gpu_memory_bytes(environment: Mapping[str, str]) -> int | None:
    text = environment.get(names.GPU_MEMORY_BYTES, "")
    if not text:
        return None
    if not text.isdecimal():
        raise TrainerError(Reason.INVALID_SPEC, f"{names.GPU_MEMORY_BYTES}: {text!r} is no number of bytes")
    return int(text)


def _log_plan(report: PreparedReport, plan: TrainingPlan) -> None:
    logger.info(
        f"plan: {report.sequences} sequences, {report.tokens} tokens ({report.trained_tokens} trained) an epoch; "
        f"{report.total_steps} steps of {report.global_batch} sequences on {report.world_size} processes; "
        f"{report.precision}, {report.kernels} kernels, sharding {report.sharding}"
    )
    logger.info("memory of one process, about %.1f GiB: %s", plan.memory.total / GIB, plan.memory.describe())
    for note in report.notes:
        logger.info("note: %s", note)
