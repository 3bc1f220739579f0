"""Layers whose frozen weights are spread over processes: whole only while they compute.

Two layers' worth of memory, the slots, is there on each process. Layer i computes in slot i modulo 2, so what a layer's
products read lies at the same place in every step; what lies there changes. While one layer computes, the next one's
weights are fetched into the other slot, on a stream of their own; its adapters, which every process has, are written
beside them then. The two layers at the turn from forward to backward stay where they are. Layers that are kept in
another format have two slots of their own: what one format leaves between its numbers must be zero for it.

Only frozen weights travel, so nothing is ever reduced or sent back: that is what makes this simpler and faster than
FSDP for LoRA. docs/design/2026-11-27-spread-base-model.md has the figures.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from finetune_trainer.clock import StepClock
from finetune_trainer.contract.series import Phase
from finetune_trainer.exchange import Exchange
from finetune_trainer.filling import Destination
from finetune_trainer.fused.frozen.weight import Allocate

NUM_SLOTS = 2
# What is smaller stays whole on each process: fetching it would take longer than it saves memory.
SMALLEST_SPREAD_BYTES = 1 << 20
ALIGNMENT_BYTES = 256


class Slot:
    """Memory in which one layer after another computes.

    Attributes:
        runs: each holds one tensor of a layer, in as many equal parts as there are processes, uint8.
        tenant: number of the layer that lies there; None where it is none.
    """

    def __init__(self, on_gpu: bool) -> None:
        self.runs: list[Tensor] = []
        self.tenant: int | None = None
        self.free = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        self.filled = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]


class SpreadLayers:
    """The frozen weights of all layers, of which this process keeps a share.

    Args:
        exchange: with the processes that keep the other shares.
        num_layers: of the model.
        clock: what a layer waits for its weights is counted there.
        smallest_bytes: a tensor with fewer stays whole.
    """

    def __init__(
        self,
        exchange: Exchange,
        num_layers: int,
        clock: StepClock,
        smallest_bytes: int = SMALLEST_SPREAD_BYTES,
    ) -> None:
        self._exchange, self._num_layers, self._clock = exchange, num_layers, clock
        self._smallest_bytes = smallest_bytes
        self._on_gpu = exchange.device.type == "cuda"
        self._stream = torch.cuda.Stream(exchange.device) if self._on_gpu else None  # type: ignore[no-untyped-call]
        self._slots: dict[tuple[Hashable, int], Slot] = {}
        self._slot_of: dict[int, Slot] = {}
        self._share: Tensor | None = None
        self._refresh: list[Callable[[], None]] = []

    # --- building -----------------------------------------------------------------------------------------------------

    def memory_of(self, number: int, kind: Hashable = None) -> Allocate:
        """Return what gives a layer its memory; layers of a kind have to ask for the same, in the same order."""
        slot = self._slots.setdefault((kind, number % NUM_SLOTS), Slot(self._on_gpu))
        self._slot_of[number] = slot
        runs, num_taken = slot.runs, 0
        device = self._exchange.device

        def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            nonlocal num_taken
            num_bytes = torch.Size(shape).numel() * dtype.itemsize
            if num_bytes < self._smallest_bytes:
                return torch.zeros(shape, dtype=dtype, device=device)
            if num_taken == len(runs):
                quantum = self._exchange.num_processes * ALIGNMENT_BYTES
                runs.append(torch.zeros(-(-num_bytes // quantum) * quantum, dtype=torch.uint8, device=device))
            run = runs[num_taken]
            num_taken += 1
            return run[:num_bytes].view(dtype).view(shape)

        return allocate

    def refresh_with(self, refresh: list[Callable[[], None]]) -> None:
        """Say what writes the values of each layer's adapters to where its products read them."""
        self._refresh = refresh

    def kept_when_filled(self, number: int, destinations: Mapping[str, Destination]) -> dict[str, Destination]:
        """Return the destinations of a layer; when the last of them is filled, this process keeps its share of all."""
        awaited = set(destinations)

        def fill_and_keep(name: str, weight: Tensor) -> Tensor:
            place = destinations[name].fill(weight)
            awaited.discard(name)
            if not awaited:
                self._keep(number)
            return place

        return {name: Destination(place.shape, partial(fill_and_keep, name)) for name, place in destinations.items()}

    def _keep(self, number: int) -> None:
        if self._share is None:
            self._share = self._exchange.open(self._start_of(self._num_layers))
        for start, run in self._parts(number):
            size = len(run) // self._exchange.num_processes
            own = run[self._exchange.rank * size : (self._exchange.rank + 1) * size]
            self._share[start : start + size].copy_(own)

    def publish(self) -> None:
        """Let the others read this process' share, when all layers are kept."""
        self._exchange.publish()

    # --- computing ----------------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """Write the adapters' values, which have changed, to the layers that lie there already."""
        for slot in self._slots.values():
            if slot.tenant is not None:
                self._refresh[slot.tenant]()

    def use(self, number: int, then: int | None) -> None:
        """Have a layer's weights in their place for what is computed next, and begin to fetch those of another.

        Args:
            number: of the layer that computes now.
            then: of the layer that computes after it; None where that is not known.
        """
        slot = self._fetch(number)
        with self._clock.phase(Phase.COMMUNICATION):
            if slot.filled is not None:
                torch.cuda.current_stream().wait_event(slot.filled)
        if then is not None:
            self._fetch(then)

    def _fetch(self, number: int) -> Slot:
        """Begin to fetch a layer into its slot where it does not lie there; what computes there now is done first."""
        slot = self._slot_of[number]
        if slot.tenant != number:
            with self._beside(slot):
                for start, run in self._parts(number):
                    self._exchange.read(start, run)
                self._refresh[number]()
            slot.tenant = number
        return slot

    @contextmanager
    def _beside(self, slot: Slot) -> Iterator[None]:
        """On a GPU, do it on the stream of fetches, when all that was asked for before has left the slot."""
        if self._stream is None or slot.free is None or slot.filled is None:
            yield
            return
        slot.free.record()
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.free)
            yield
            slot.filled.record()

    # --- where things lie ---------------------------------------------------------------------------------------------

    def _start_of(self, number: int) -> int:
        """Return where a layer begins in a share."""
        before = (run for earlier in range(number) for run in self._slot_of[earlier].runs)
        return sum(map(len, before)) // self._exchange.num_processes

    def _parts(self, number: int) -> Iterator[tuple[int, Tensor]]:
        """Yield for each tensor of a layer where its part of a share begins, and its run."""
        start = self._start_of(number)
        for run in self._slot_of[number].runs:
            yield start, run
            start += len(run) // self._exchange.num_processes
