"""The trainer, in each of whose processes a thread writes down fifty times a second what the others do.

FINETUNE_SAMPLES=DIR python -m benchmarks.trainer.scaling.sampled train JOB ...

How late the thread comes tells for how long somebody has held the interpreter's lock. Processes that the agent spawns
import this module too, and are watched from then on.

NB: faulthandler's watchdog needs no lock, but reads frames that change: it crashed the trainer within seconds.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType

INTERVAL_SECONDS = 0.02
MAX_FRAMES = 40


def watch(path: Path) -> None:
    """Write a line of JSON for each look at the threads: when, how many milliseconds late, and their frames."""
    with path.open("w", encoding="utf-8") as file:
        while True:
            before = time.monotonic()
            time.sleep(INTERVAL_SECONDS)
            late = time.monotonic() - before - INTERVAL_SECONDS
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            threads = {
                names.get(ident, str(ident)): frames_of(frame)
                for ident, frame in sys._current_frames().items()
                if ident != threading.get_ident()
            }
            line = {"at": round(time.time(), 3), "late_ms": round(1000 * late, 1), "threads": threads}
            file.write(json.dumps(line) + "\n")


def frames_of(frame: FrameType | None) -> list[str]:
    """Return the innermost frames of a thread."""
    found: list[str] = []
    while frame is not None and len(found) < MAX_FRAMES:
        code = frame.f_code
        found.append(f"{'/'.join(code.co_filename.split('/')[-2:])}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return found


_samples = Path(os.environ["FINETUNE_SAMPLES"]) / f"{os.getpid()}.jsonl"
threading.Thread(target=watch, args=(_samples,), name="samples", daemon=True).start()

if __name__ == "__main__":
    from finetune_trainer.__main__ import main

    sys.exit(main())
