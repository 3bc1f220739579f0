"""What a process of the gang died of, and which of several was the cause.

torchrun passes on an exit code only, so each process writes its error to a file, and the agent of the node reads them.
"""

import json
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from finetune_trainer.contract.progress import ProgressReport
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError

PROGRESS_FILE = "progress.json"


def explain(error: Exception, advise_on_memory: Callable[[], str]) -> TrainerError:
    """Find the reason of an error, and what to do about it.

    Args:
        error: what ended the process.
        advise_on_memory: says what to change when it was a GPU's memory.
    """
    if isinstance(error, TrainerError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return TrainerError(Reason.OUT_OF_GPU_MEMORY, f"{first_line(error)}. {advise_on_memory()}")
    # NB: gloo raises plain RuntimeErrors that only their text tells apart.
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower()):
        return TrainerError(
            Reason.COLLECTIVE_FAILED,
            f"another process was lost, or the network between them: {first_line(error)}. The pod that ended first "
            "says more",
        )
    return TrainerError(Reason.ERROR, f"{type(error).__name__}: {error}{_place_of(error)}")


def _place_of(error: Exception) -> str:
    """Return which of our lines an error nobody has foreseen came from, as its log may go with its pod."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if __package__ in Path(frame.filename).parts]
    return f" (in {own[-1].name}, {Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, without the full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def write_failure(directory: Path, rank: int, error: TrainerError) -> None:
    """Leave an error for the agent; renamed when it is complete, as the agent may be reading."""
    document = {
        "reason": error.reason,
        "message": error.message,
        "rank": rank,
        "step": error.step,
        "checkpoint": error.checkpoint,
        "time": time.time(),
    }
    partial = directory / f".rank-{rank}.partial"
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.replace(directory / f"rank-{rank}.json")


def write_progress(directory: Path, progress: ProgressReport) -> None:
    """Leave the progress for the agent, which tells it also when this process was killed."""
    partial = directory / f".{PROGRESS_FILE}.partial"
    partial.write_text(progress.model_dump_json(by_alias=True), encoding="utf-8")
    partial.replace(directory / PROGRESS_FILE)


def read_progress(directory: Path) -> ProgressReport | None:
    """Return what `write_progress` left last; None where rank 0 is on another node, or never began to train."""
    try:
        return ProgressReport.model_validate_json((directory / PROGRESS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def first_failure(directory: Path, exit_codes: Mapping[int, int]) -> TrainerError:
    """Return the error that came first: others mostly follow from it.

    A process that wrote no file was killed; that explains a lost connection elsewhere, so it comes before those.

    Args:
        directory: where `write_failure` wrote.
        exit_codes: of the processes that failed, by rank; negative is the signal that killed one.
    """
    written = sorted(
        (json.loads(path.read_text(encoding="utf-8")) for path in directory.glob("rank-*.json")),
        key=lambda document: float(document["time"]),
    )
    causes = [document for document in written if document["reason"] != Reason.COLLECTIVE_FAILED]
    told = {document["rank"] for document in written}
    # SIGTERM is how the agent stops the others when one has failed.
    killed = {rank: code for rank, code in exit_codes.items() if rank not in told and code != -signal.SIGTERM}
    if causes or (written and not killed):
        document = (causes or written)[0]
        return TrainerError(
            Reason(document["reason"]),
            document["message"],
            rank=document["rank"],
            step=document["step"],
            checkpoint=document["checkpoint"],
        )
    rank, code = next(iter((killed or exit_codes).items()))
    if code == -signal.SIGABRT:
        # How NCCL's watchdog ends a process (https://docs.pytorch.org/docs/stable/torch_nccl_environment_variables.html).
        return TrainerError(
            Reason.COLLECTIVE_FAILED,
            f"process {rank} aborted, as NCCL does when another process was lost or does not answer; its log says more",
            rank=rank,
        )
    what = f"exited with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        what += (
            ": if its pod had reached its memory limit, raise compute.resources.limits.memory; if not, somebody "
            "ended it on its node"
        )
    reason = Reason.TERMINATED if not killed else Reason.KILLED if code < 0 else Reason.ERROR
    return TrainerError(reason, f"process {rank} {what}", rank=rank)
