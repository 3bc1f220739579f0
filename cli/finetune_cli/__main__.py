"""`kubectl finetune`: kubectl finds the program `kubectl-finetune` on the PATH and hands it the rest of the line."""

import os
import sys

from finetune_cli.app import app
from finetune_cli.errors import CommandError, ExitCode
from finetune_cli.terminal import say_error


def main() -> int:
    """Run one command and return its exit code."""
    try:
        code = app(prog_name="kubectl finetune")
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


if __name__ == "__main__":
    sys.exit(main())
