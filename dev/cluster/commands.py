"""Runs other programs: their output goes to a log, their failure becomes a ClusterError with that log's end."""

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from dev.cluster.failure import ClusterError
from dev.cluster.layout import COMMAND_MARK, MARK

_running: set[subprocess.Popen[bytes]] = set()
_running_lock = threading.Lock()
stopping = threading.Event()


def run_logged(
    part: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    advice: str,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    may_outlive_us: bool = False,
) -> None:
    """Run a long command with its output appended to ``log``.

    The command carries the cluster's mark, by which the next run finds and ends it should this process be killed;
    ``may_outlive_us`` leaves the mark out for what must not be cut short.

    Raises:
        ClusterError: the command is missing or ended with a non-zero status.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    mark = {} if may_outlive_us else {MARK: f"{COMMAND_MARK}{part}"}
    with log.open("ab") as output:
        output.write(f"$ {' '.join(map(str, command))}\n".encode())
        output.flush()
        try:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd,
                env={**os.environ, **mark, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        except FileNotFoundError as error:
            raise ClusterError(part, f"program {command[0]} is not there", advice) from error
        with _running_lock:
            _running.add(process)
        try:
            status = process.wait()
        finally:
            with _running_lock:
                _running.discard(process)
    if status != 0:
        raise ClusterError(part, f"{Path(command[0]).name} ended with status {status}", advice, log)


def stop_running() -> None:
    """End what other threads wait for: one part has failed, and nobody needs theirs any more."""
    stopping.set()
    with _running_lock:
        for process in _running:
            process.terminate()


def output_of(part: str, command: Sequence[str | Path], *, advice: str = "", stdin: str | None = None) -> str:
    """Run a short command and return what it printed.

    Raises:
        ClusterError: the command failed; the error carries what it wrote to standard error.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ClusterError(part, f"program {words[0]} is not there", advice or "run: make cluster") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        what = f"`{' '.join(words)}` ended with status {done.returncode}: {said}"
        raise ClusterError(part, what, advice or "see above")
    return done.stdout


def succeeds(command: Sequence[str | Path]) -> bool:
    """Return whether a short command, whose output nobody needs, exits with status 0."""
    return (
        subprocess.run(
            [str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, check=False
        ).returncode
        == 0
    )
