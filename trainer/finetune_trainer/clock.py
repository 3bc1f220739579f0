"""What the time of a step went to, as the device saw it.

On a GPU the program runs ahead of the device, so its own clock says nothing of what the device waited for. Events are
put into the device's stream around what the program does, and read when the device has been waited for anyway. What the
program did while the device was still busy takes no time between two events; what the device stood idle for does. On a
CPU program and device are one.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from finetune_trainer.contract.series import Phase

# What a process measures by itself; how much of its communication was waiting follows from those of the others.
MEASURED = (Phase.DATA, Phase.COMPUTE, Phase.COMMUNICATION, Phase.CHECKPOINT)

Times = Mapping[Phase, float]  # seconds
Mark = float | torch.cuda.Event


class StepClock:
    """Splits the time of one step after another into phases; what is in no other phase is computing.

    Args:
        device: that computes the steps.

    Attributes:
        last: what was read last.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []  # used again in each step
        self._num_used = 0
        self._spans: list[tuple[Phase, Mark, Mark]] = []
        self._paused = 0.0
        self.last: Times = dict.fromkeys(MEASURED, 0.0)
        self._begun: Mark = 0.0
        self._ended: Mark = 0.0

    def begin(self) -> None:
        """Begin a step."""
        self._num_used, self._spans = 0, []
        self._begun = self._mark()

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Count what the device stands still for, or does, meanwhile to a phase. Phases may not overlap."""
        started = self._mark()
        yield
        self._spans.append((phase, started, self._mark()))

    @contextmanager
    def checkpoint_between_steps(self) -> Iterator[None]:
        """Count the time between two steps to the checkpoint of the next one; the device has nothing to do then."""
        started = time.monotonic()
        yield
        self._paused += time.monotonic() - started

    def end(self) -> None:
        """End a step; the device may still be at work on it."""
        self._ended = self._mark()

    def read(self) -> Times:
        """Return the phases that were measured; call it when the device has done the step."""
        times = dict.fromkeys(MEASURED, 0.0)
        for phase, started, ended in self._spans:
            times[phase] += self._between(started, ended)
        times[Phase.COMPUTE] += max(self._between(self._begun, self._ended) - sum(times.values()), 0.0)
        times[Phase.CHECKPOINT] += self._paused
        self._paused = 0.0
        self.last = times
        return times

    def _mark(self) -> Mark:
        if not self._is_gpu:
            return time.monotonic()
        if self._num_used == len(self._events):
            self._events.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
        event = self._events[self._num_used]
        self._num_used += 1
        event.record()
        return event

    @staticmethod
    def _between(earlier: Mark, later: Mark) -> float:
        if isinstance(earlier, float) or isinstance(later, float):
            assert isinstance(earlier, float)
            assert isinstance(later, float)
            return later - earlier
        milliseconds: float = earlier.elapsed_time(later)
        return milliseconds / 1000


def lay_out(times: Times, rank: int, world_size: int) -> list[float]:
    """Return numbers that, summed over all processes, are those of each of them, one after the other."""
    rows = [0.0] * (world_size * len(MEASURED))
    rows[rank * len(MEASURED) : (rank + 1) * len(MEASURED)] = [times[phase] for phase in MEASURED]
    return rows


def read_rows(rows: Sequence[float]) -> list[Times]:
    """Return what was laid out, by rank."""
    width = len(MEASURED)
    return [dict(zip(MEASURED, rows[start : start + width], strict=True)) for start in range(0, len(rows), width)]


def tell_waiting(measured: Sequence[Times]) -> list[Times]:
    """Take apart, for each process of a gang, what it waited for slower ones, and what was sent meanwhile.

    A collective operation ends for all at once, so who comes last spends the least time in it: that is what sending
    takes, and what the others spend longer they waited.
    """
    sending = min(times[Phase.COMMUNICATION] for times in measured)
    return [
        {**times, Phase.COMMUNICATION: sending, Phase.WAIT: times[Phase.COMMUNICATION] - sending} for times in measured
    ]
