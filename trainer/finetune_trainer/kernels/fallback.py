"""What happens where a kernel cannot be compiled: its twin in PyTorch takes its place, and somebody is told.

Triton compiles a kernel when it is first used with a kind of arguments. That takes a C compiler, a cache that can be
written, and a GPU that its compiler knows. A training that lacks one of them goes on, slower, and does not end in the
middle of a step.
"""

import logging
import subprocess
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

# How Triton says that there is no C compiler (triton/runtime/build.py); it has no type of its own.
NO_COMPILER = "Failed to find C compiler"

_failed: dict[str, str] = {}


def told_fallbacks() -> dict[str, str]:
    """Return a sentence for each thing that this process does slower than it meant to, by its name."""
    return dict(_failed)


def with_fallback(name: str, fast: Callable[..., Any], slow: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is computed by a kernel, or where it cannot be compiled, by its twin from then on.

    Nothing has been written when a kernel does not compile, so its twin finds everything as it was.

    Args:
        name: of the kernel, for people.
        fast: launches it.
        slow: its twin.
    """

    def compute(*arguments: Any) -> Any:
        if name in _failed:
            return slow(*arguments)
        try:
            return fast(*arguments)
        except Exception as error:
            if not is_compile_failure(error):
                raise
            remember(name, error)
            return slow(*arguments)

    return compute


def maker_with_fallback(name: str, fast: Callable[..., Any], slow: Callable[..., Any]) -> Callable[..., Any]:
    """Return `with_fallback` for a function that returns what is computed later."""

    def make(*arguments: Any) -> Callable[[], Any]:
        return with_fallback(name, fast(*arguments), slow(*arguments))

    return make


def remember(kernel: str, error: BaseException) -> None:
    """Keep in mind, and say, that a kernel could not be compiled."""
    fall_back(kernel, f"kernel {kernel} could not be compiled, PyTorch computes it, slower", error)


def fall_back(name: str, what: str, error: BaseException) -> None:
    """Keep in mind, and say, that something works in a slower way only, and why."""
    why = f"{type(error).__name__}: {error}".partition("\n")[0]
    _failed[name] = f"{what}: {why}"
    logger.warning("%s", _failed[name])


def is_compile_failure(error: BaseException) -> bool:
    """Say whether an error is of Triton's compiler, or of what it needs from the machine."""
    if isinstance(error, (OSError, subprocess.SubprocessError, ImportError)):
        return True
    if isinstance(error, RuntimeError) and str(error).startswith(NO_COMPILER):
        return True
    return any(kind.__module__.startswith("triton.") for kind in type(error).__mro__)
