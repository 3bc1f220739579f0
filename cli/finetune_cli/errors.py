"""What a command ends with: the exit codes that scripts may rely on, and the error that carries one."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1
    """What was asked about is not well: the job failed, does not fit, or a finding needs a person."""
    USAGE = 2
    """The command line or the file is wrong; nothing was done."""
    UNREACHABLE = 3
    """No cluster, or the API server did not answer."""
    NOT_FOUND = 4
    """The job, or something else that was named, is not there."""
    FORBIDDEN = 5
    """The API server refuses it to this user."""
    TIMED_OUT = 124
    """It did not happen within --timeout."""
    INTERRUPTED = 130
    """Stopped from the keyboard; the job goes on."""


EXIT_CODE_MEANINGS = {
    ExitCode.OK: "All is well. Of `watch` and `submit --watch`: the job succeeded.",
    ExitCode.FAILED: "What was asked about is not well: the job failed (`watch`, `submit --watch`, `local`), it does "
    "not fit (`plan`), something needs a person (`doctor`), a command failed on a node (`exec`), a digest is wrong "
    "(`download`), or the API server refused an object.",
    ExitCode.USAGE: "The command line or the file is wrong. Nothing was done.",
    ExitCode.UNREACHABLE: "No kubeconfig, or the API server does not answer.",
    ExitCode.NOT_FOUND: "The job, or another object that was named, is not there.",
    ExitCode.FORBIDDEN: "The API server does not permit it to this user.",
    ExitCode.TIMED_OUT: "It did not happen within `--timeout`. The job goes on.",
    ExitCode.INTERRUPTED: "Stopped with Ctrl-C. The job goes on.",
}


class CommandError(Exception):
    """A command cannot go on; the message says what happened, where, and what to do."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class NotThere(CommandError):
    """An object that was asked for does not exist."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.NOT_FOUND)


class NotPermitted(CommandError):
    """The API server does not permit something to this user."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.FORBIDDEN)


class Refused(CommandError):
    """The API server refuses an object: a quota, a policy, a rule of the FineTuneJob."""
