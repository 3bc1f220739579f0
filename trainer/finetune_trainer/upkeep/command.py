"""The arguments of the commands that look after the shared filesystem: prune, adopt."""

import argparse
import sys
from datetime import datetime
from pathlib import Path

from finetune_trainer.contract.paths import SHARED_MOUNT
from finetune_trainer.contract.termination import TERMINATION_LOG, Reason, TerminationMessage, write_termination
from finetune_trainer.errors import TrainerError
from finetune_trainer.upkeep.adopt import adopt
from finetune_trainer.upkeep.prune import Jobs, prune


def main(arguments: list[str]) -> int:
    """Run one command; the exit status is 0, or 1 with one line on standard error and a termination message."""
    options = _parser().parse_args(arguments)
    try:
        _RUN[options.verb](options)
    except TrainerError as error:
        _leave_last_word(TerminationMessage(reason=error.reason, message=error.message))
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return 1
    _leave_last_word(TerminationMessage(reason=Reason.SUCCEEDED, message=f"{options.verb} is done"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer")
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--shared", type=Path, default=SHARED_MOUNT, help="the shared filesystem")
    pruning = verbs.add_parser("prune", parents=[common], help="list, or remove, what no job names of the cache")
    pruning.add_argument("--namespace", required=True, help="whose jobs are named here")
    pruning.add_argument("--listed-at", type=datetime.fromisoformat, required=True, help="when they were listed")
    pruning.add_argument("--living", action="append", default=[], metavar="UID", help="a job that there is")
    pruning.add_argument("--keep", action="append", default=[], metavar="PATH", help="a path that a job names")
    pruning.add_argument("--keep-repository", action="append", default=[], metavar="OWNER/NAME")
    pruning.add_argument("--remove", action="store_true", help="remove; without it they are only listed")
    adopting = verbs.add_parser("adopt", parents=[common], help="copy a job's checkpoint to another job")
    adopting.add_argument("--from", dest="source", type=Path, required=True, help="directory of the job that has it")
    adopting.add_argument("--to", dest="target", type=Path, required=True, help="directory of the job that gets it")
    adopting.add_argument("--step", type=int, required=True)
    return parser


def _prune(options: argparse.Namespace) -> None:
    jobs = Jobs(
        namespace=options.namespace,
        listed_at=options.listed_at,
        uids=frozenset(options.living),
        paths=frozenset(options.keep),
        repositories=frozenset(options.keep_repository),
    )
    for entry in prune(options.shared, jobs, remove=options.remove):
        print(entry.model_dump_json(), flush=True)


def _adopt(options: argparse.Namespace) -> None:
    report = adopt(options.shared / options.source, options.shared / options.target, options.step, options.shared)
    print(f"checkpoint of step {report.step} copied to {report.path}, {report.bytes} bytes, {report.digest}")


_RUN = {"prune": _prune, "adopt": _adopt}


def _leave_last_word(termination: TerminationMessage) -> None:
    if TERMINATION_LOG.exists():
        write_termination(TERMINATION_LOG, termination)
