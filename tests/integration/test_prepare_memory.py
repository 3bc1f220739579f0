"""A data set ten times as large as the memory that is left to prepare is prepared all the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import chat_models

SPARE_MEBIBYTES = 24
NUM_ROWS, ROW_BYTES = 1250, 200_000
# Runs in a process of its own, which the kernel denies any memory beyond what it holds already and the spare. What is
# prepared first makes the libraries take what they keep.
SCRIPT = """
import resource, sys
from pathlib import Path
from finetune_trainer.contract.dataset import Dataset
from finetune_trainer.contract.spec import Training
from finetune_trainer.data.build import Source, build_data
from finetune_trainer.data.render import Renderer
from finetune_trainer.data.rows import RowWork
from finetune_trainer.data.template import load_tokenizer

directory, spare_bytes = Path(sys.argv[1]), int(sys.argv[2])
work = RowWork(Renderer(load_tokenizer(directory / "model")), Training(max_sequence_length=512), 0.02, 1 << 20)

def prepare(name):
    file = directory / f"{name}.jsonl"
    source = Source(Dataset(path=file.name, format="openai"), file.name, None, ((file.name, file),))
    return build_data([source], work, 500, directory / f"{name}-packed", 1)

prepare("few")
status = Path("/proc/self/status").read_text()
held_bytes = int(status.split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held_bytes + spare_bytes,) * 2)
try:
    (directory / "many.jsonl").read_bytes()
except MemoryError:
    [report] = prepare("many").datasets
    print(report.rows_kept + report.rows_held_out)
else:
    print("the limit does not hold")
"""


def write_rows(path: Path, num_rows: int) -> None:
    with path.open("w") as file:
        for number in range(num_rows):
            words = f"{number} is asked " * 40
            turns = [{"role": "user", "content": words}, {"role": "assistant", "content": f"{number} is answered"}]
            row = json.dumps({"messages": turns, "notes": ""})
            file.write(row[:-2] + "x" * (ROW_BYTES - len(row)) + row[-2:] + "\n")


def test_data_ten_times_as_large_as_the_memory_that_is_left_is_prepared(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    chat_models.write_tokenizer(tmp_path / "model")
    write_rows(tmp_path / "few.jsonl", 100)
    write_rows(tmp_path / "many.jsonl", NUM_ROWS)
    assert (tmp_path / "many.jsonl").stat().st_size > 9.9 * (SPARE_MEBIBYTES << 20)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(SPARE_MEBIBYTES << 20)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if ended.returncode != 0:
        pytest.fail(ended.stderr[-2000:])
    assert ended.stdout.split() == [str(NUM_ROWS)]
