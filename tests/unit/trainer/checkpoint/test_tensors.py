"""Files of tensors, as several threads write them at once."""

import subprocess
import sys
from pathlib import Path

# The time between two lines of Python's import, in which one thread has loaded a module and another does not find it in
# its package, is made long: https://github.com/python/cpython/issues/149728.
TWO_THREADS_WRITE_FIRST = """
import sys, threading, time, types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy, torch

class Slow(types.ModuleType):
    def __setattr__(self, name, value):
        if isinstance(value, types.ModuleType):
            time.sleep(0.5)
        super().__setattr__(name, value)

numpy.__class__ = Slow
from finetune_trainer.checkpoint.tensors import save_tensors

def write(seconds):
    time.sleep(seconds)
    save_tensors({"weight": torch.ones(3)}, Path(sys.argv[1]) / f"after-{seconds}.safetensors")

with ThreadPoolExecutor(2) as threads:
    list(threads.map(write, [0.0, 0.25]))
"""


def test_two_threads_may_be_the_first_to_write_tensors(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TWO_THREADS_WRITE_FIRST, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-500:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after-0.0.safetensors", "after-0.25.safetensors"]
