"""Files of tensors."""

import os
import re
from pathlib import Path

# NB: safetensors asks numpy for this module when it writes, and numpy loads it when it is first asked. Of two threads
# that write at once one may not find it where the other has just loaded it, and asks again until RecursionError ends
# the training: https://github.com/python/cpython/issues/149728. So it is loaded here, before there are threads.
import numpy.ctypeslib  # noqa: F401
from safetensors import SafetensorError
from safetensors.torch import save_file

from finetune_trainer.checkpoint.content import Tensors


def save_tensors(tensors: Tensors, path: Path) -> None:
    """Write a safetensors file. Raises OSError.

    NB: save_file lets other threads run while it writes; save(), which returns bytes, kept them waiting for 0.4 s for
    420 MB (docs/LOG.md). But it tells a full disk in Rust's words only: `No space left on device (os error 28)`.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
