"""Base model and adapter as one model, in the Hugging Face layout.

Weights are read, added and written one output file at a time, so that memory holds one file of the model and never the
model. The sum is made in fp32 and rounded once, to the base model's own number format.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from finetune_trainer.architecture import CONFIG_FILE, ModelShape
from finetune_trainer.checkpoint.directory import write_directory
from finetune_trainer.checkpoint.tensors import save_tensors
from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.template import TOKENIZER_FILES
from finetune_trainer.digests import digests_of
from finetune_trainer.errors import TrainerError
from finetune_trainer.inference.adapter import Adapter, LowRank
from finetune_trainer.weights import WHOLE_FILE, expected_weights, find_weight_files

INDEX_FILE = "model.safetensors.index.json"
MANIFEST_FILE = "manifest.json"
# What belongs to a model besides its weights: how it reads a chat, when it stops, under which terms it may be used.
COMPANIONS = (CONFIG_FILE, "generation_config.json", "LICENSE*", *TOKENIZER_FILES)
MAX_FILE_BYTES = 4_000_000_000
TYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True)
class Merged:
    """A merged model on the disk."""

    num_bytes: int  # of its weights
    digest: str  # `sha256:` of its manifest.json, which has the digest of each file


@dataclass(frozen=True)
class Place:
    """Where a weight of the base model lies."""

    name: str
    file: Path
    num_bytes: int


def merge(
    base: Path, shape: ModelShape, adapter: Adapter, directory: Path, max_file_bytes: int = MAX_FILE_BYTES
) -> Merged:
    """Write the merged model into a directory, which is there complete or not at all.

    Raises:
        TrainerError: MODEL_UNAVAILABLE when the base model cannot be read, STORAGE_FULL or STORAGE_NOT_WRITABLE.
    """
    places = _find_weights(base, shape)
    groups = _group(places, max_file_bytes)

    def write(partial: Path) -> None:
        _copy_companions(base, partial)
        index: dict[str, str] = {}
        for number, group in enumerate(groups, start=1):
            name = WHOLE_FILE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
            save_tensors(_merged_weights(group, adapter), partial / name)
            index |= {place.name: name for place in group}
        if len(groups) > 1:
            total = sum(place.num_bytes for place in places)
            document = {"metadata": {"total_size": total}, "weight_map": index}
            (partial / INDEX_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        names = [str(path.relative_to(partial)) for path in files]
        digests = dict(zip(names, digests_of(files), strict=True))
        (partial / MANIFEST_FILE).write_text(json.dumps({"sha256": digests}, indent=2) + "\n", encoding="utf-8")

    write_directory(directory, write, lambda _: None)
    manifest = (directory / MANIFEST_FILE).read_bytes()
    return Merged(sum(place.num_bytes for place in places), f"sha256:{hashlib.sha256(manifest).hexdigest()}")


def _find_weights(base: Path, shape: ModelShape) -> list[Place]:
    wanted = expected_weights(shape)
    places = []
    for path in find_weight_files(base):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    if name in wanted:
                        weight = file.get_slice(name)
                        num_values = torch.Size(weight.get_shape()).numel()
                        places.append(Place(name, path, num_values * TYPE_BYTES[weight.get_dtype()]))
        except (OSError, SafetensorError, KeyError) as error:
            raise TrainerError(Reason.MODEL_UNAVAILABLE, f"{path}: cannot be read: {error}") from error
    return places


def _group(places: list[Place], max_file_bytes: int) -> list[list[Place]]:
    """Put weights into files of at most so many bytes; one that is larger alone gets a file of its own."""
    groups: list[list[Place]] = []
    filled = 0
    for place in places:
        if not groups or filled + place.num_bytes > max_file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(place)
        filled += place.num_bytes
    return groups


def _merged_weights(group: list[Place], adapter: Adapter) -> dict[str, torch.Tensor]:
    weights = {}
    for path in sorted({place.file for place in group}):
        with safe_open(path, framework="pt") as file:
            for place in group:
                if place.file == path:
                    update = adapter.updates.get(place.name)
                    weight = file.get_tensor(place.name)
                    weights[place.name] = weight if update is None else _added(weight, update)
    return weights


def _added(weight: torch.Tensor, update: LowRank) -> torch.Tensor:
    return torch.addmm(weight.float(), update.b.float(), update.a.float(), alpha=update.scale).to(weight.dtype)


def _copy_companions(base: Path, directory: Path) -> None:
    for path in {path for pattern in COMPANIONS for path in base.glob(pattern) if path.is_file()}:
        target = directory / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
