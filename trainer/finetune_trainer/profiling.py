"""A trace of some steps, on request: what ran on the CPU and on the GPU of rank 0, and when.

It is a Chrome trace, which https://ui.perfetto.dev shows. Collective operations tell their sizes in it. Nothing of this
runs in any other step.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from finetune_trainer.contract.spec import Profile
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import storage_errors

PROFILE_DIRECTORY = "profile"


class StepProfiler:
    """Traces the steps that were asked for, as far as this attempt does them.

    Args:
        wanted: what to trace; None traces nothing.
        directory: for the trace.
        say: tells people where it is.
    """

    def __init__(self, wanted: Profile | None, directory: Path, say: Callable[[str], None]) -> None:
        first = 0 if wanted is None else wanted.first_step
        self._steps = range(first, first + (0 if wanted is None else wanted.steps))
        self._directory = directory
        self._say = say
        self._trace: Any = None
        self._begun_at = 0

    def before_step(self, step: int) -> None:
        """Begin the trace when a step, counted from 1, is the first to be traced."""
        if step not in self._steps or self._trace is not None:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._trace = torch.profiler.profile(activities=activities, record_shapes=True)
        self._trace.start()
        self._begun_at = step

    def after_step(self, step: int) -> None:
        """End the trace and write it when a step was the last of it; a training is not ended by a trace."""
        if self._trace is None or step + 1 in self._steps:
            return
        started = time.monotonic()
        trace, self._trace = self._trace, None
        trace.stop()
        path = self._directory / f"steps-{self._begun_at}-{step}.json.gz"
        try:
            with storage_errors(path):
                write_trace(trace, path)
        except (TrainerError, OSError, RuntimeError) as error:
            self._say(f"warning: the profile of steps {self._begun_at} to {step} was not written: {error}")
        else:
            self._say(
                f"profile of steps {self._begun_at} to {step} written to {path} in {time.monotonic() - started:.1f} s; "
                "https://ui.perfetto.dev shows it"
            )


def write_trace(trace: Any, path: Path) -> None:
    """Write a trace; the file is whole when it has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # NB: whether it is compressed, torch tells by the end of the name.
    partial = path.with_name(f".partial-{path.name}")
    trace.export_chrome_trace(str(partial))
    partial.replace(path)
