"""Weights read ahead of their use, by several threads, straight into a GPU's memory.

A copy out of a memory-mapped file takes its pages one after the other, in the thread that also asks the GPU to round
them. Here threads read large pieces into page-locked memory and have the GPU fetch them, while what was read before is
put into its place. Layers come in their order, whatever files hold them, so that only a few tensors lie on the GPU
besides the model. docs/LOG.md has the figures.
"""

import errno
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.weights import read_header

PIECE_BYTES = 16 << 20
MAX_THREADS = 8
# That may lie on a GPU before they are asked for, of the size of a layer's largest: little beside the model itself.
NUM_TENSORS_AHEAD = 2
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # in the file
    num_bytes: int


def find_tensors(files: Iterable[Path]) -> list[StoredTensor]:
    """Return the tensors of some files, those of a layer one after another.

    Raises:
        TrainerError: MODEL_UNAVAILABLE.
    """
    found = []
    for path in files:
        data_start, tensors = read_header(path)
        for name, tensor in tensors.items():
            first, end = tensor["data_offsets"]
            shape = tuple(tensor["shape"])
            found.append(StoredTensor(path, name, tensor["dtype"], shape, data_start + first, end - first))
    return sorted(found, key=lambda stored: (_layer_of(stored.name) or 0, stored.path, stored.start))


def _layer_of(name: str) -> int | None:
    layer = _LAYER.search(name)
    return None if layer is None else int(layer[1])


def read_tensors(tensors: Sequence[StoredTensor], device: torch.device) -> Iterator[tuple[StoredTensor, Tensor]]:
    """Yield tensors in their order: on a GPU where the device is one, else on the host, mapped.

    What is larger than some tensors of a layer together, as embeddings and head mostly are, is always mapped.

    Raises:
        TrainerError: MODEL_UNAVAILABLE when a file cannot be read, or is shorter than it should be.
    """
    max_bytes = 0
    if device.type == "cuda":
        in_layers = [stored.num_bytes for stored in tensors if _layer_of(stored.name) is not None]
        max_bytes = NUM_TENSORS_AHEAD * max(in_layers, default=0)
    return read_ahead(tensors, device, max_bytes, min(torch.get_num_threads(), MAX_THREADS))


def read_ahead(
    tensors: Iterable[StoredTensor], device: torch.device, max_bytes: int, num_threads: int
) -> Iterator[tuple[StoredTensor, Tensor]]:
    """Yield tensors in their order, on a device.

    Args:
        tensors: to read.
        device: that they are for.
        max_bytes: that may lie there before they are asked for; a larger tensor is yielded on the host, mapped.
        num_threads: that read.

    Raises:
        TrainerError: MODEL_UNAVAILABLE when a file cannot be read, or is shorter than it should be.
    """
    upcoming, num_bytes = deque(tensors), 0
    begun: deque[tuple[StoredTensor, int, Callable[[], Tensor]]] = deque()
    with Readers(device, num_threads) as readers:
        while upcoming or begun:
            while upcoming and num_bytes + (own := _bytes_there(upcoming[0], max_bytes)) <= max_bytes:
                stored = upcoming.popleft()
                begun.append((stored, own, readers.begin(stored) if own else partial(_map_tensor, stored)))
                num_bytes += own
            stored, own, finish = begun.popleft()
            num_bytes -= own
            try:
                tensor = finish()
            except (OSError, SafetensorError) as error:
                raise TrainerError(Reason.MODEL_UNAVAILABLE, f"{stored.path}: cannot be read: {error}") from error
            yield stored, tensor


def _bytes_there(stored: StoredTensor, max_bytes: int) -> int:
    return stored.num_bytes if stored.num_bytes <= max_bytes else 0


def _map_tensor(stored: StoredTensor) -> Tensor:
    with safe_open(stored.path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(stored.name)
        return tensor


class Readers:
    """Threads that read pieces of files into a device's memory.

    Args:
        device: that the pieces are for.
        num_threads: each with page-locked memory for a piece where the device is a GPU.
    """

    def __init__(self, device: torch.device, num_threads: int) -> None:
        self._device = device
        self._pool = ThreadPoolExecutor(num_threads, "weights")
        self._desks: SimpleQueue[Desk] = SimpleQueue()
        for _ in range(num_threads):
            self._desks.put(Desk(device))
        self._descriptors: dict[Path, int] = {}
        self._opening = threading.Lock()

    def begin(self, stored: StoredTensor) -> Callable[[], Tensor]:
        """Begin to read a tensor; what is returned waits for it, and raises OSError where it cannot be read."""
        memory = torch.empty(stored.num_bytes, dtype=torch.uint8, device=self._device)
        # What used the memory before may still be at work there.
        is_free = torch.cuda.current_stream(self._device).record_event() if self._device.type == "cuda" else None
        pieces = [
            self._pool.submit(self._read, stored, start, memory[start : start + PIECE_BYTES], is_free)
            for start in range(0, stored.num_bytes, PIECE_BYTES)
        ]

        def finish() -> Tensor:
            for piece in pieces:
                piece.result()
            return memory.view(DTYPES[stored.dtype]).view(stored.shape)

        return finish

    def _read(self, stored: StoredTensor, start: int, out: Tensor, is_free: torch.cuda.Event | None) -> None:
        desk = self._desks.get()
        try:
            desk.read(self._descriptor(stored.path), stored.start + start, out, is_free)
        finally:
            self._desks.put(desk)

    def _descriptor(self, path: Path) -> int:
        with self._opening:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(path, os.O_RDONLY)
            return self._descriptors[path]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing under way: what was not begun is not read any more."""
        self._pool.shutdown(cancel_futures=True)
        for descriptor in self._descriptors.values():
            os.close(descriptor)


class Desk:
    """Memory of the host through which one piece after another goes to a device."""

    def __init__(self, device: torch.device) -> None:
        is_gpu = device.type == "cuda"
        self._memory = torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=is_gpu)
        self._stream = torch.cuda.Stream(device) if is_gpu else None  # type: ignore[no-untyped-call]

    def read(self, descriptor: int, start: int, out: Tensor, is_free: torch.cuda.Event | None) -> None:
        """Read bytes of a file into `out`, and return when they are there. Raises OSError."""
        memory = self._memory[: len(out)]
        _read_exactly(descriptor, start, memory.numpy().data)
        if self._stream is None or is_free is None:
            out.copy_(memory)
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(is_free)
            out.copy_(memory, non_blocking=True)
        self._stream.synchronize()


def _read_exactly(descriptor: int, start: int, out: memoryview) -> None:
    done = 0
    while done < len(out):
        num_bytes = os.preadv(descriptor, [out[done:]], start + done)
        if num_bytes == 0:
            raise OSError(errno.EIO, f"ends {len(out) - done} bytes early")
        done += num_bytes
