"""`python -m finetune_trainer prepare|train|evaluate JOB.yaml`: the same verbs in a pod and on a laptop.

Beside them stand the commands of `workbench` for a person with an adapter (test-functions, benchmark, bfcl), and those
of `upkeep`, which `kubectl finetune` runs on a shared filesystem (prune, adopt).
"""

import argparse
import logging
import os
import sys
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from finetune_trainer.contract.job import JobFileError, read_job
from finetune_trainer.contract.paths import JOB_FILE, NETWORK_MOUNT, SHARED_MOUNT, JobPaths
from finetune_trainer.contract.progress import ProgressReport
from finetune_trainer.contract.termination import (
    STOPPED_EXIT_CODE,
    TERMINATION_LOG,
    PreparedReport,
    Reason,
    TerminationMessage,
    write_termination,
)
from finetune_trainer.errors import TrainerError
from finetune_trainer.stopping import Stopped, stop_on_sigterm

# The root filesystem of a pod is read-only and its user has no home, so libraries keep what they write under /tmp.
# They read these variables when they are imported.
LIBRARY_SETTINGS = {
    "HF_HOME": "/tmp/huggingface",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # bars are for terminals; `hub` logs its progress in lines
    "HF_HUB_DISABLE_XET": "1",  # NB: Xet keeps a second copy of what it downloads under HF_HOME, in the pod's /tmp
    "HF_HUB_DOWNLOAD_TIMEOUT": "30",
    "HF_HUB_ETAG_TIMEOUT": "30",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}

WORKBENCH_COMMANDS = ("test-functions", "benchmark", "bfcl")
UPKEEP_COMMANDS = ("prune", "adopt")


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the exit status is 0, or 1 with one line on standard error and a termination message."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in WORKBENCH_COMMANDS:
        return _run_workbench(words)
    if words and words[0] in UPKEEP_COMMANDS:
        return _run_upkeep(words)
    options = _parser().parse_args(words)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    for name, value in LIBRARY_SETTINGS.items():
        os.environ.setdefault(name, value)
    # As the first process of a container it would otherwise not hear SIGTERM at all.
    stop_on_sigterm(lambda words, progress: _leave_last_word(options, _terminated(words, progress)))
    termination = _run(options, os.environ)
    _leave_last_word(options, termination)
    if termination.reason is Reason.SUCCEEDED:
        print(termination.message)
        return 0
    print(f"{termination.reason}: {termination.message}", file=sys.stderr)
    return STOPPED_EXIT_CODE if termination.reason is Reason.TERMINATED else 1


def _run_workbench(words: list[str]) -> int:
    from finetune_trainer.workbench.command import main as run

    return run(words)


def _run_upkeep(words: list[str]) -> int:
    from finetune_trainer.upkeep.command import main as run

    return run(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer", description=__doc__)
    parser.add_argument("verb", choices=("prepare", "train", "evaluate"))
    parser.add_argument("job", type=Path, nargs="?", default=JOB_FILE, metavar="JOB.yaml", help="a FineTuneJob")
    parser.add_argument("--shared", type=Path, default=SHARED_MOUNT, help="directory that every node sees")
    parser.add_argument("--network", type=Path, help=f"directory for log files; {NETWORK_MOUNT} where it is mounted")
    parser.add_argument("--termination-log", type=Path, help=f"file for the last word; {TERMINATION_LOG} in a pod")
    return parser


def _run(options: argparse.Namespace, environment: Mapping[str, str]) -> TerminationMessage:
    try:
        return _run_verb(options, environment)
    except TrainerError as error:
        return TerminationMessage(
            reason=error.reason,
            message=error.message,
            rank=getattr(error, "rank", None),
            step=getattr(error, "step", None),
            checkpoint=getattr(error, "checkpoint", None),
            progress=error.progress,
        )
    except JobFileError as error:
        return TerminationMessage(reason=Reason.INVALID_SPEC, message=str(error))
    except Stopped as stopped:
        return _terminated(f"stopped by {stopped} before it was done")
    except KeyboardInterrupt:
        return _terminated("stopped from the keyboard")
    except Exception as error:  # noqa: BLE001 - whatever it is, a person has to learn of it
        traceback.print_exc()
        return TerminationMessage(reason=Reason.ERROR, message=f"{type(error).__name__}: {error}; see the log")


def _terminated(message: str, progress: ProgressReport | None = None) -> TerminationMessage:
    return TerminationMessage(reason=Reason.TERMINATED, message=message, progress=progress)


def _leave_last_word(options: argparse.Namespace, termination: TerminationMessage) -> None:
    if options.termination_log is not None or TERMINATION_LOG.exists():
        write_termination(options.termination_log or TERMINATION_LOG, termination)


def _run_verb(options: argparse.Namespace, environment: Mapping[str, str]) -> TerminationMessage:
    job = read_job(options.job)
    network = options.network or (NETWORK_MOUNT if NETWORK_MOUNT.is_dir() else None)
    paths = JobPaths.of(job, options.shared.resolve(), network)
    if options.verb == "train":
        # Imported late: brings torch, which takes seconds that prepare does not need.
        from finetune_trainer.launch import train

        trained, progress = train(job, paths, environment)
        message = f"trained {trained.steps} steps, loss {trained.first_loss:.4f} -> {trained.final_loss:.4f}"
        return TerminationMessage(reason=Reason.SUCCEEDED, message=message, trained=trained, progress=progress)
    if options.verb == "evaluate":
        from finetune_trainer.evaluate.stage import evaluate, termination_of

        return termination_of(evaluate(job, paths, environment))
    from finetune_trainer.prepare import prepare

    prepared = prepare(job, paths, environment)
    return TerminationMessage(reason=Reason.SUCCEEDED, message=summarise(prepared), prepared=prepared)


def summarise(prepared: PreparedReport) -> str:
    """Say in one line what prepare found: rows, what was left out and why, sequences, steps, memory."""
    dropped: Counter[str] = Counter()
    for dataset in prepared.datasets:
        dropped.update(dataset.dropped)
        dropped["held out"] += dataset.rows_held_out
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()) if count)
    left_out = f" (left out: {reasons})" if reasons else ""
    rows_read = sum(dataset.rows_read for dataset in prepared.datasets)
    rows_kept = sum(dataset.rows_kept for dataset in prepared.datasets)
    return (
        f"prepared {rows_kept} of {rows_read} rows{left_out}: {prepared.sequences} sequences, {prepared.tokens} tokens "
        f"({prepared.trained_tokens} trained), {prepared.total_steps} steps, about "
        f"{prepared.estimated_memory_bytes / (1 << 30):.1f} GiB of memory a process"
    )


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Not sys.exit: that would wait for the threads of a download that was given up.
    os._exit(status)
