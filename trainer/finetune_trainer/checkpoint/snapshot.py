"""A copy of the training's tensors in host memory, made while the training goes on.

The adapter and the optimizer's moments change only when gradients are applied. Between two such moments lie the
forward and backward passes of a whole global batch, so there is time to copy, and whoever applies gradients waits until
that is over. On a GPU even this wait is the GPU's own: the program only puts it into the GPU's queue.

NB: DefaultStager of torch.distributed.checkpoint (torch 2.13) copies on a stream of its own that does not wait for the
optimizer's kernels, and leaves it to its user to wait with the program.
"""

import threading
from collections.abc import Mapping

import torch

from finetune_trainer.checkpoint.content import Tensors


class Snapshot:
    """Memory of the host for a copy of some tensors, taken again and again.

    Args:
        tensors: fp32, all on one GPU, or all on the CPU (step counts of an optimizer may be there in any case). The
            memory is allocated here and now, page-locked for a GPU, as that takes longer than a copy.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(tensors)
        device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        sizes = [tensor.numel() for tensor in tensors.values()]
        # One piece: PyTorch rounds each piece of page-locked memory up to a power of two.
        memory = torch.empty(sum(sizes), dtype=torch.float32, pin_memory=device is not None)
        pieces = zip(tensors.items(), torch.split(memory, sizes), strict=True)
        self._copies = {name: piece.view(tensor.shape) for (name, tensor), piece in pieces}
        self._stream = None if device is None else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied_on_gpu: torch.cuda.Event | None = None
        self._copied_on_host = threading.Event()
        self._copied_on_host.set()

    def begin(self) -> None:
        """Copy the tensors as they are now. On a CPU the copy itself is left to the thread that calls `finish`."""
        self._copied_on_host.clear()
        if self._stream is None:
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            self._copy()
            self._copied_on_gpu = self._stream.record_event()

    def wait_before_change(self) -> None:
        """Call before the tensors change: whatever changes them comes after the copy that was begun."""
        if self._stream is None:
            self._copied_on_host.wait()
        elif self._copied_on_gpu is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(self._copied_on_gpu)

    def finish(self) -> Tensors:
        """Return the copy when it is complete; valid until the next `begin`. Called by another thread."""
        if self._copied_on_gpu is not None:
            self._copied_on_gpu.synchronize()
        else:
            try:
                self._copy()
            finally:
                self._copied_on_host.set()
        return self._copies

    @torch.no_grad()
    def _copy(self) -> None:
        for name, tensor in self._tensors.items():
            self._copies[name].copy_(tensor, non_blocking=True)
