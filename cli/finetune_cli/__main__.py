"""`kubectl finetune`: kubectl finds the program `kubectl-finetune` on the PATH and hands it the rest of the line."""

import os
import sys

from finetune_cli.app import app
from finetune_cli.errors import CommandError, ExitCode
from finetune_cli.terminal import say_error

_PROGRAM = "kubectl-finetune"
_COMPLETION_VARIABLE = "_KUBECTL_FINETUNE_COMPLETE"
_COMPLETION_OPTIONS = frozenset({"--install-completion", "--show-completion"})


def main() -> int:
    """Run one command and return its exit code."""
    try:
        code = app(prog_name=_program_name())
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except CommandError as error:
        say_error(error.message)
        return int(error.code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read us, `head` for one, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    return int(code or 0)


def _program_name() -> str:
    """Return the name that a person reads; a shell completes the program by the name of its file."""
    completes = _COMPLETION_VARIABLE in os.environ or not _COMPLETION_OPTIONS.isdisjoint(sys.argv[1:])
    return _PROGRAM if completes else "kubectl finetune"


if __name__ == "__main__":
    sys.exit(main())
