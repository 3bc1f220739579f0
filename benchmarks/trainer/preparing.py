"""How fast data is prepared, beside the `tokenizers` library alone on the same text, and in how much memory.

    python -m benchmarks.trainer.preparing --model DIR --data ROWS.jsonl --format openai
    python -m benchmarks.trainer.preparing --model DIR --data ROWS.jsonl --format openai --memory 10

Printed are tokens a second, the best of a few interleaved rounds:

* of one processor, in CPU time: the library alone, and tokenising, marking what is trained, packing and writing
* of all processors, in real time: the library alone, and everything that prepare does from the file to packed sequences

With `--memory N` the data is prepared once as it is and once N times as large, each in a process of its own, and the
largest memory of all processes together is printed: anonymous memory, as the kernel can take back the rest.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from finetune_trainer.contract.dataset import Dataset, DatasetFormat
from finetune_trainer.contract.spec import Training
from finetune_trainer.data.build import Source, build_data
from finetune_trainer.data.conversation import BadRowError
from finetune_trainer.data.formats import parse_row
from finetune_trainer.data.packed import PACKED_FILE, PackedSequences, PackedWriter, Sequence
from finetune_trainer.data.packing import pack
from finetune_trainer.data.read import read_rows
from finetune_trainer.data.render import MarkedText, Renderer
from finetune_trainer.data.rows import RowWork
from finetune_trainer.data.template import load_tokenizer
from finetune_trainer.processors import num_available_cpus

TEXTS_AT_ONCE = 1000
SAMPLING_SECONDS = 0.05
TRAINING = Training()


def main() -> int:
    """Measure, and print one line of JSON."""
    arguments = _parser().parse_args()
    if arguments.memory:
        sizes = {copies: _peak_bytes(arguments, copies) for copies in (1, arguments.memory)}
        print(json.dumps({f"{copies}x": f"{size / (1 << 20):.0f} MiB" for copies, size in sizes.items()}))
    elif arguments.only_build:
        _build(arguments, Renderer(load_tokenizer(arguments.model)))
    else:
        print(json.dumps(_throughput(arguments)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory with a tokenizer and a chat template")
    parser.add_argument("--data", type=Path, required=True, help="a file of rows")
    parser.add_argument("--format", type=DatasetFormat, choices=list(DatasetFormat), required=True)
    parser.add_argument("--rows", type=int, help="use only the first rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=num_available_cpus())
    parser.add_argument("--memory", type=int, metavar="N", help="compare the memory of N times the data")
    parser.add_argument("--only-build", action="store_true", help=argparse.SUPPRESS)
    return parser


# --- throughput -------------------------------------------------------------------------------------------------------


def _throughput(arguments: argparse.Namespace) -> dict[str, object]:
    tokenizer = load_tokenizer(arguments.model)
    renderer = Renderer(tokenizer)
    marked = _marked(arguments, renderer)
    texts = [one.text for one in marked]

    def alone() -> int:
        return sum(
            len(encoding)
            for start in range(0, len(texts), TEXTS_AT_ONCE)
            for encoding in tokenizer.backend_tokenizer.encode_batch(
                texts[start : start + TEXTS_AT_ONCE], add_special_tokens=False
            )
        )

    seconds: dict[str, list[float]] = {}
    num_tokens = alone()
    for _ in range(arguments.rounds):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        _time(seconds, "one processor: tokenizers alone", time.process_time, alone)
        _time(seconds, "one processor: tokenised, packed", time.process_time, lambda: _pack(marked, renderer))
        _time(seconds, "all processors: prepared", time.monotonic, lambda: _build(arguments, renderer))
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        _time(seconds, "all processors: tokenizers alone", time.monotonic, alone)
    rates = {name: round(num_tokens / min(taken)) for name, taken in seconds.items()}
    return {
        "conversations": len(marked),
        "tokens": num_tokens,
        "processes": arguments.processes,
        "tokens per second": rates,
        "ratio of one processor": round(
            rates["one processor: tokenised, packed"] / rates["one processor: tokenizers alone"], 3
        ),
        "ratio of all processors": round(
            rates["all processors: prepared"] / rates["all processors: tokenizers alone"], 3
        ),
    }


def _time(seconds: dict[str, list[float]], name: str, clock: Callable[[], float], work: Callable[[], object]) -> None:
    started = clock()
    work()
    seconds.setdefault(name, []).append(clock() - started)


def _marked(arguments: argparse.Namespace, renderer: Renderer) -> list[MarkedText]:
    marked: list[MarkedText] = []
    for number, row in enumerate(read_rows(arguments.data, arguments.data.name)):
        if number == arguments.rows:
            break
        try:
            marked += renderer.mark(parse_row(row.parsed(), arguments.format))
        except BadRowError as error:
            print(f"{row.place}: {error}", file=sys.stderr)
    return marked


def _pack(marked: list[MarkedText], renderer: Renderer) -> None:
    """Do with texts what prepare does with them: tokens, marks of training, a spool on disk, sequences on disk."""
    length = TRAINING.max_sequence_length
    with tempfile.TemporaryDirectory() as name:
        spool, packed = Path(name) / "spool", Path(name) / "packed"
        for directory in (spool, packed):
            directory.mkdir()
        with PackedWriter(spool / PACKED_FILE) as writer:
            for one in marked:
                document = renderer.tokenise(one)
                tokens, trained = document.tokens[:length], document.trained[:length]
                writer.append(Sequence(tokens, trained, np.array([len(tokens)], np.int32)))
        documents = PackedSequences.open(spool)
        with PackedWriter(packed / PACKED_FILE) as writer:
            for group in pack(documents.num_tokens_by_sequence, length):
                parts = [documents.sequence(int(index)) for index in group]
                writer.append(
                    Sequence(
                        np.concatenate([part.tokens for part in parts]),
                        np.concatenate([part.trained for part in parts]),
                        np.concatenate([part.document_lengths for part in parts]),
                    )
                )


def _build(arguments: argparse.Namespace, renderer: Renderer) -> None:
    dataset = Dataset(path=arguments.data.name, format=arguments.format, max_samples=arguments.rows)
    source = Source(dataset, arguments.data.name, None, ((arguments.data.name, arguments.data),))
    work = RowWork(renderer, TRAINING, holdout_share=0.0, vocab_size=1 << 30)
    with tempfile.TemporaryDirectory() as name:
        build_data([source], work, 0, Path(name) / "data", arguments.processes)


# --- memory -----------------------------------------------------------------------------------------------------------


def _peak_bytes(arguments: argparse.Namespace, copies: int) -> int:
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / arguments.data.name
        with data.open("wb") as target:
            for _ in range(copies):
                with arguments.data.open("rb") as source:
                    shutil.copyfileobj(source, target)
        options = ["--model", str(arguments.model), "--data", str(data), "--format", arguments.format]
        command = [sys.executable, "-m", "benchmarks.trainer.preparing", *options, "--only-build"]
        process = subprocess.Popen([*command, "--processes", str(arguments.processes)])
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(_anonymous_bytes, _family(process.pid))))
            threading.Event().wait(SAMPLING_SECONDS)
        if process.returncode != 0:
            raise SystemExit(f"preparing {copies} copies ended with {process.returncode}")
    return peak


def _family(process: int) -> list[int]:
    """Return a process and all that it has started."""
    family = [process]
    for member in family:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                family += [int(child) for child in children.read_text().split()]
            except OSError:
                continue  # it has just ended
    return family


def _anonymous_bytes(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon:"))


if __name__ == "__main__":
    sys.exit(main())
