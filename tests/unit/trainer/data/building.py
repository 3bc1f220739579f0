"""Small data sets, built into packed sequences."""

import json
from pathlib import Path
from typing import Any

from finetune_trainer.contract.dataset import Dataset
from finetune_trainer.contract.spec import Training
from finetune_trainer.data.build import Source, build_data
from finetune_trainer.data.packed import PackedSequences
from finetune_trainer.data.render import Renderer
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.rows import RowWork
from tests import chat_models

TRAINING = Training(max_sequence_length=64)


def chat(answer: str, question: str = "Hi") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def source(directory: Path, rows: list[Any], name: str = "rows.jsonl", **fields: Any) -> Source:
    path = directory / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Source(Dataset(path=name, **({"format": "openai"} | fields)), name, None, ((name, path),))


def texts(tokenizer: Any, packed: PackedSequences) -> list[str]:
    """The documents of all sequences, as the model is shown them, in alphabetical order."""
    documents = []
    for index in range(len(packed)):
        start = 0
        for length in packed.sequence(index).document_lengths.tolist():
            tokens = packed.sequence(index).tokens[start : start + length]
            documents.append(tokenizer.decode(tokens))
            start += length
    return sorted(documents)


def build(
    sources: list[Source],
    renderer: Renderer,
    directory: Path,
    training: Training = TRAINING,
    holdout_share: float = 0,
    max_held_out: int | None = 500,
    num_processes: int = 1,
) -> DataReport:
    work = RowWork(renderer, training, holdout_share, chat_models.VOCABULARY_SIZE)
    return build_data(sources, work, max_held_out, directory, num_processes)


MANY = [chat(f"answer {number}") for number in range(200)]
WIDE = Training(max_sequence_length=256)
ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}


def calling(name: str, arguments: Any, number: int = 0) -> dict[str, Any]:
    call = {"function": {"name": name, "arguments": arguments}}
    messages = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "tool_calls": [call]}]
    return {"messages": messages, "tools": [ADD]}
