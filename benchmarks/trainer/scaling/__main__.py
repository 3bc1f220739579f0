"""How the trainer grows with the GPUs of a host: speed, bytes, memory, stalls, and what a lost process costs.

    python -m benchmarks.trainer.scaling --directory /dev/shm/scaling --seconds 400 --out /tmp/scaling
    python -m benchmarks.trainer.scaling --directory /tmp/scaling --cpu --out /tmp/scaling-out      # a rehearsal

It is the product that runs: `prepare` and `train` as a pod runs them, on random weights. Cases of one wave share no GPU
and run side by side; waves are in the order of what is wanted most, and none begins that would not end in time. Each
case leaves a line of JSON in `cases.jsonl`, its log, and where it was profiled what the trace says.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.trainer.scaling.bench import Bench, write_inputs
from benchmarks.trainer.scaling.cases import REHEARSAL, WAVES


def main() -> int:
    """Write models, prepare all cases, train them wave by wave."""
    arguments = _parser().parse_args()
    started = time.monotonic()
    ends = started + arguments.seconds
    waves = REHEARSAL if arguments.cpu else WAVES
    if arguments.only:
        waves = [[case for case in wave if case.name in arguments.only.split(",")] for wave in waves]
    bench = Bench(arguments.directory, arguments.out, arguments.cpu)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(16) as pool:
        prepared = write_inputs(bench, [case for wave in waves for case in wave], pool)
        for wave in filter(None, waves):
            takes = max(case.seconds for case in wave)
            if time.monotonic() + takes / 2 > ends:
                bench.tell({"left out": [case.name for case in wave]})
                continue
            for case in wave:
                prepared[case.name].result()
            bench.tell({"wave": [case.name for case in wave], "after_seconds": round(time.monotonic() - started, 1)})
            bench.run_wave(wave)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="for models, data and runs; memory is fastest")
    parser.add_argument("--out", type=Path, required=True, help="for what is measured")
    parser.add_argument("--seconds", type=float, default=400, help="time for all of it")
    parser.add_argument("--only", default="", help="names of cases, with commas; all where there is none")
    parser.add_argument("--cpu", action="store_true", help="rehearse with tiny models on CPUs")
    return parser


if __name__ == "__main__":
    torch.set_num_threads(8)
    sys.exit(main())
