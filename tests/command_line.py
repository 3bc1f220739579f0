"""`kubectl finetune` as a person runs it: a process of its own, what it prints, its exit code."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = (sys.executable, "-m", "finetune_cli")


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class CommandLine:
    """The program bound to a cluster and a namespace."""

    kubeconfig: Path
    namespace: str = "default"
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a command: nothing of the person's who runs the tests, but the PATH."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "KUBECONFIG": str(self.kubeconfig),
            "HF_ENDPOINT": "http://127.0.0.1:1",  # no test waits for a Hub that it did not start
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "trainer", "cli")),
            **self.environment,
        }

    def words(self, *arguments: str) -> list[str]:
        """The whole command line; what stands behind `--` stays behind the options."""
        before, after = arguments, ()
        if "--" in arguments:
            place = arguments.index("--")
            before, after = arguments[:place], arguments[place:]
        return [*PROGRAM, *before, "--namespace", self.namespace, *after]

    def run(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 60) -> Finished:
        """Run a command to its end, whatever that is."""
        finished = subprocess.run(
            self.words(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            env=self.variables,
            timeout=timeout_seconds,
            check=False,
        )
        return Finished(finished.returncode, finished.stdout, finished.stderr)

    def output(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 60) -> str:
        """Run a command that has to end well and return what it printed."""
        finished = self.run(*arguments, stdin=stdin, timeout_seconds=timeout_seconds)
        assert finished.exit_code == 0, f"{arguments} ended with {finished.exit_code}:\n{finished.stderr}"
        return finished.stdout
