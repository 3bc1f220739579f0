"""How a failure reads: which part, what happened, the last lines of its log, what to do."""

from pathlib import Path

LOG_LINES_SHOWN = 15


class ClusterError(Exception):
    """A part of the cluster could not do its work.

    Args:
        part: the part's name as progress and ``status`` show it, such as ``kubelet-node1``.
        what: what happened, in one sentence.
        advice: what the reader can do about it.
        log: the part's log file; its last lines are shown.
    """

    def __init__(self, part: str, what: str, advice: str, log: Path | None = None) -> None:
        super().__init__(f"{part}: {what}")
        self.part = part
        self.what = what
        self.advice = advice
        self.log = log

    def report(self) -> str:
        """Return the whole story for a terminal."""
        lines = [f"FAILED: {self.part}: {self.what}"]
        if self.log is not None:
            lines += [f"  last lines of {self.log}:", *(f"  | {line}" for line in last_lines(self.log))]
        lines.append(f"  what to do: {self.advice}")
        return "\n".join(lines)


def last_lines(log: Path, count: int = LOG_LINES_SHOWN) -> list[str]:
    """Return the last lines of a log file, each cut to 300 characters; a sentence when there is none."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return ["(no log was written)"]
    return [line[:300] for line in text.rstrip().splitlines()[-count:]] or ["(the log is empty)"]
