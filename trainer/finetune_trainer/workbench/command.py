"""The arguments of the commands for a person with an adapter in hand."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from finetune_trainer.contract.paths import SHARED_MOUNT
from finetune_trainer.contract.spec import Device
from finetune_trainer.errors import TrainerError
from finetune_trainer.inference.device import find_device
from finetune_trainer.workbench.bfcl import CATEGORIES, find_data, run_bfcl
from finetune_trainer.workbench.functions import ask_all
from finetune_trainer.workbench.model import Choice, Model, load_model
from finetune_trainer.workbench.speed import run_benchmark


def main(arguments: list[str]) -> int:
    """Run one command; the exit status is 0, or 1 when a test fails or something is wrong, told in one line."""
    options = _parser().parse_args(arguments)
    try:
        device = find_device(options.device or (Device.GPU if torch.cuda.is_available() else Device.CPU))
        model = load_model(Choice(options.adapter, options.model, options.shared, device))
        return 0 if _RUN[options.verb](model, options) else 1
    except TrainerError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer")
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--adapter", type=Path, help="directory of the adapter; without it the base model is asked")
    common.add_argument("--model", type=Path, help="directory of the base model; the one that the adapter names")
    common.add_argument("--shared", type=Path, default=SHARED_MOUNT, help="the shared filesystem, with its models")
    common.add_argument("--device", type=Device, choices=list(Device), help="a GPU where there is one")
    test = verbs.add_parser("test-functions", parents=[common], help="four questions about two functions")
    test.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    speed = verbs.add_parser("benchmark", parents=[common], help="time to first token, tokens a second, memory")
    speed.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16, 64], metavar="N")
    speed.add_argument("--prompt-tokens", type=int, default=512)
    speed.add_argument("--new-tokens", type=int, default=128)
    bfcl = verbs.add_parser("bfcl", parents=[common], help="Berkeley Function Calling Leaderboard, by syntax")
    bfcl.add_argument("--categories", nargs="+", choices=list(CATEGORIES), default=list(CATEGORIES))
    bfcl.add_argument("--data", type=Path, help="data directory of bfcl-eval; that of the installed package")
    bfcl.add_argument("--limit", type=int, help="ask only the first questions of each category, this many")
    bfcl.add_argument("--batch-size", type=int, default=16)
    return parser


def _test_functions(model: Model, options: argparse.Namespace) -> bool:
    return ask_all(model, _say, options.temperature)


def _benchmark(model: Model, options: argparse.Namespace) -> bool:
    run_benchmark(model, options.batch_sizes, options.prompt_tokens, options.new_tokens, _say)
    return True


def _bfcl(model: Model, options: argparse.Namespace) -> bool:
    run_bfcl(model, options.data or find_data(), options.categories, options.limit, options.batch_size, _say)
    return True


def _say(line: str) -> None:
    print(line, flush=True)


_RUN: dict[str, Callable[[Model, argparse.Namespace], bool]] = {
    "test-functions": _test_functions,
    "benchmark": _benchmark,
    "bfcl": _bfcl,
}
