"""SIGTERM ends the trainer, whatever it is doing."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

GRACE_SECONDS = 0.5

# What the process is doing, and the last word that it is to leave.
BUSY = {
    "plain Python": ("time.sleep(60)", "stopped by SIGTERM"),
    "code that swallows every Exception": (
        """
        while True:
            try:
                time.sleep(60)
            except Exception:
                pass
        """,
        "stopped by SIGTERM",
    ),
    "code that swallows the stop itself": (
        """
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
        """,
        "overdue SIGTERM",
    ),
    # Minutes in C without a look at signals, as a process has that waits for its peers.
    "code in C": ("import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)", "overdue SIGTERM"),
}


@pytest.mark.parametrize("doing", BUSY)
def test_a_process_ends_soon_after_sigterm_and_leaves_its_last_word(doing: str, tmp_path: Path) -> None:
    code, expected = BUSY[doing]
    last_word = tmp_path / "last-word"
    program = "\n".join(
        [
            "import sys, time",
            "from pathlib import Path",
            "from finetune_trainer.stopping import Stopped, stop_on_sigterm",
            f"stop_on_sigterm(lambda name: Path(sys.argv[1]).write_text('overdue ' + name), {GRACE_SECONDS})",
            "print('ready', flush=True)",
            "try:",
            textwrap.indent(textwrap.dedent(code).strip(), "    "),
            "except Stopped as stopped:",
            "    Path(sys.argv[1]).write_text('stopped by ' + str(stopped))",
        ]
    )
    with subprocess.Popen([sys.executable, "-c", program, str(last_word)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
        assert time.monotonic() - started < GRACE_SECONDS + 2
    assert last_word.read_text() == expected
