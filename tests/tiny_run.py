"""A job that is prepared and ready to train within seconds: a random model of two layers, random packed documents."""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from finetune_trainer import recipe
from finetune_trainer.architecture import read_shape
from finetune_trainer.contract.job import TrainerJob, parse_job
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import PreparedReport, TrainedReport
from finetune_trainer.data.batch import Batch, make_batch
from finetune_trainer.data.packed import PACKED_FILE, PackedWriter, Sequence
from finetune_trainer.gang import Node, Place
from finetune_trainer.planner.formats import resolve_kernels

VOCABULARY_SIZE = 128
MODEL_PATH, DATA_PATH = "models/tiny", "datasets/tiny"
TINY_SIZES = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def write_tiny_model(directory: Path, model_type: str = "llama", **settings: Any) -> torch.nn.Module:
    """Write a random model in the Hugging Face layout and return it as transformers computes it."""
    config: PretrainedConfig = AutoConfig.for_model(model_type, **(TINY_SIZES | settings))
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Initial weights are so small that every token gets nearly the same logits: nothing to compare by.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory)
    return model.eval()


def random_sequence(seed: int, document_lengths: tuple[int, ...]) -> Sequence:
    """A sequence of random tokens, of which about half are trained."""
    random = np.random.default_rng(seed)
    num_tokens = sum(document_lengths)
    return Sequence(
        tokens=random.integers(0, VOCABULARY_SIZE, num_tokens, dtype=np.int32),
        trained=random.random(num_tokens) < 0.5,
        document_lengths=np.array(document_lengths, dtype=np.int32),
    )


def all_trained(tokens: list[int], *document_lengths: int) -> Batch:
    """A batch of one sequence whose every token is trained."""
    lengths = document_lengths or (len(tokens),)
    sequence = Sequence(np.array(tokens, np.int32), np.ones(len(tokens), np.bool_), np.array(lengths, np.int32))
    return make_batch([sequence])


def prepare_tiny_job(root: Path, num_sequences: int = 12, **groups: dict[str, Any]) -> tuple[TrainerJob, JobPaths]:
    """Write model, data and plan of a job of fp32 CPU processes under `root`; `groups` override groups of its spec."""
    spec: dict[str, Any] = {
        "model": {"path": MODEL_PATH},
        "datasets": [{"path": "data/unused.jsonl", "format": "openai"}],
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
        "training": {
            "epochs": 2,
            "batchSize": 1,
            "gradientAccumulation": 4,
            "maxSequenceLength": 32,
            "optimizer": {"learningRate": 0.01},
            "schedule": {"warmupSteps": 1},
            "logEverySteps": 1,
        },
        "compute": {"device": "cpu", "sharding": "replicate"},
    }
    for name, group in groups.items():
        spec[name] = spec.get(name, {}) | group
    job = parse_job(
        {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "tiny"}, "spec": spec}
    )
    shared = root / "shared"
    if not (shared / MODEL_PATH).exists():
        write_tiny_model(shared / MODEL_PATH)
    _write_data(shared / DATA_PATH, num_sequences)
    paths = JobPaths.of(job, shared, root / "network")
    paths.job.mkdir(parents=True, exist_ok=True)
    paths.prepared.write_text(plan_of(job, shared, num_sequences).model_dump_json(by_alias=True))
    return job, paths


def train_in_process(
    rank: int, world_size: int, store: Path, runs: list[tuple[TrainerJob, JobPaths, int]]
) -> list[TrainedReport]:
    """Be one process of a gang, and train one job after another in it; `runs` say how many processes make a node."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    try:
        return [
            recipe.train(
                job, paths, Place(rank, rank % per_node, world_size, per_node, torch.device("cpu")), Node(0, {})
            )
            for job, paths, per_node in runs
        ]
    finally:
        dist.destroy_process_group()


def train_in_gang(world_size: int, store: Path, runs: list[tuple[TrainerJob, JobPaths, int]]) -> None:
    """Train in several processes; they are forked from a server that has imported everything once."""
    multiprocessing.set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(
        train_in_process, (world_size, store, runs), nprocs=world_size, start_method="forkserver"
    )


def _write_data(directory: Path, num_sequences: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with PackedWriter(directory / PACKED_FILE) as writer:
        for index in range(num_sequences):
            writer.append(random_sequence(index, (5 + index % 7, 9) if index % 3 else (8 + index,)))


def plan_of(job: TrainerJob, shared: Path, num_sequences: int) -> PreparedReport:
    """What prepare would have resolved for the job."""
    shape = read_shape(shared / MODEL_PATH)
    steps_per_epoch = -(-num_sequences // job.spec.global_batch)
    total_steps = steps_per_epoch * job.spec.training.epochs
    return PreparedReport(
        model=MODEL_PATH,
        model_family=shape.family,
        model_path=MODEL_PATH,
        data_path=DATA_PATH,
        parameters=shape.num_parameters,
        trainable_parameters=shape.num_adapter_parameters(job.spec.lora),
        tokens=0,
        trained_tokens=0,
        sequences=num_sequences,
        world_size=job.spec.compute.world_size,
        global_batch=job.spec.global_batch,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        warmup_steps=min(job.spec.training.schedule.warmup_steps, total_steps // 2),
        precision="fp32",
        sharding=job.spec.compute.sharding,
        kernels=resolve_kernels(job.spec),
        estimated_memory_bytes=0,
    )
