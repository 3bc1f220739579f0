"""SIGTERM ends the trainer, whatever it is doing."""

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

GRACE_SECONDS = 0.5

PRELUDE = f"""
import multiprocessing, sys, time
from pathlib import Path
from finetune_trainer.contract.progress import ProgressReport
from finetune_trainer.stopping import StopLines, StopRequest, Stopped, ask_on_sigterm, stop_on_sigterm

def tell(words, progress):
    Path(sys.argv[1]).write_text(words if progress is None else words + ' at step ' + str(progress.step))

GRACE_SECONDS = {GRACE_SECONDS}
PROGRESS = ProgressReport(step=7, total_steps=9, epoch=1)
stop_on_sigterm(tell, GRACE_SECONDS)
"""


@contextmanager
def running(code: str, last_word: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs some code, from the moment at which it has printed `ready`."""
    program = last_word.with_name("program.py")
    program.write_text(PRELUDE + textwrap.dedent(code))
    with subprocess.Popen([sys.executable, program, last_word], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.2)
            yield process
        finally:
            process.kill()


def seconds_until_it_ends(process: subprocess.Popen[bytes], signals: int = 1) -> float:
    started = time.monotonic()
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    process.wait(timeout=10)
    return time.monotonic() - started


# What the process is doing, and the last word that it is to leave.
OVERDUE = "stopped by SIGTERM before it was done"
BUSY = {
    "plain Python": ("time.sleep(60)", "caught SIGTERM"),
    "code that swallows every Exception": (
        """
        while True:
            try:
                time.sleep(60)
            except Exception:
                pass
        """,
        "caught SIGTERM",
    ),
    "code that swallows the stop itself": (
        """
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
        """,
        OVERDUE,
    ),
    # Minutes in C without a look at signals, as a process has that waits for its peers.
    "code in C": ("import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)", OVERDUE),
}


@pytest.mark.parametrize("doing", BUSY)
def test_a_process_ends_soon_after_sigterm_and_leaves_its_last_word(doing: str, tmp_path: Path) -> None:
    code, expected = BUSY[doing]
    busy = textwrap.indent(textwrap.dedent(code).strip(), "    ")
    program = (
        f"print('ready', flush=True)\ntry:\n{busy}\nexcept Stopped as stopped:\n    tell(f'caught {{stopped}}', None)"
    )
    with running(program, tmp_path / "last-word") as process:
        assert seconds_until_it_ends(process) < GRACE_SECONDS + 2
    assert (tmp_path / "last-word").read_text() == expected


# A gang that is asked to stop: what it answers, the grace that it has, the signals, and the last word of its agent.
GANGS = {
    "nobody is there yet who could be asked": ("False", 60, 1, "stopped by SIGTERM before it was done at step 7"),
    "the grace ends before the gang has": ("True", GRACE_SECONDS, 1, "stopped by SIGTERM before it was done at step 7"),
    "somebody is in a hurry": ("True", 60, 2, "told twice to stop before it was done at step 7"),
}


@pytest.mark.parametrize("gang", GANGS)
def test_an_agent_does_not_wait_in_vain(gang: str, tmp_path: Path) -> None:
    answer, grace, signals, expected = GANGS[gang]
    program = f"""
        with ask_on_sigterm(lambda: {answer}, lambda: PROGRESS, {grace}):
            print('ready', flush=True)
            time.sleep(60)
    """
    with running(program, tmp_path / "last-word") as process:
        assert seconds_until_it_ends(process, signals) < GRACE_SECONDS + 2
    assert (tmp_path / "last-word").read_text() == expected
    assert process.returncode == 143


def test_an_agent_waits_for_the_gang_that_it_asked(tmp_path: Path) -> None:
    program = """
        asked = []
        with ask_on_sigterm(lambda: asked.append(1) or True, lambda: PROGRESS, 60):
            print('ready', flush=True)
            while not asked:
                time.sleep(0.05)
            time.sleep(0.5)  # the last checkpoint
        tell('all is saved', None)
    """
    with running(program, tmp_path / "last-word") as process:
        assert 0.4 < seconds_until_it_ends(process) < 3
    assert (tmp_path / "last-word").read_text() == "all is saved"


def test_a_process_that_has_not_begun_to_train_leaves_at_once_when_it_is_asked(tmp_path: Path) -> None:
    program = """
        def leave():
            tell('left', None)
            sys.stdout.flush()
            import os
            os._exit(3)

        lines = StopLines(1)
        request = StopRequest(lines.ends[0], leave)
        print('ready', flush=True)
        assert lines.ask()
        time.sleep(60)
    """
    with running(program, tmp_path / "last-word") as process:
        assert process.wait(timeout=5) == 3
    assert (tmp_path / "last-word").read_text() == "left"


def test_a_process_that_trains_looks_for_the_request_itself(tmp_path: Path) -> None:
    program = """
        lines = StopLines(1)
        request = StopRequest(lines.ends[0], lambda: tell('left', None))
        request.training_begins()
        print('ready', flush=True)
        assert not request.is_made()
        assert lines.ask()
        while not request.is_made():
            time.sleep(0.01)
        tell('finished the micro-batch', None)
    """
    with running(program, tmp_path / "last-word") as process:
        assert process.wait(timeout=5) == 0
    assert (tmp_path / "last-word").read_text() == "finished the micro-batch"


def test_nobody_is_asked_before_he_listens(tmp_path: Path) -> None:
    program = """
        lines = StopLines(2)
        tell(str(lines.ask()), None)
        print('ready', flush=True)
    """
    with running(program, tmp_path / "last-word") as process:
        process.wait(timeout=5)
    assert (tmp_path / "last-word").read_text() == "False"


def test_a_process_whose_agent_was_killed_ends(tmp_path: Path) -> None:
    program = """
        import os

        def be_a_process(line):
            request = StopRequest(line, lambda: None)
            request.training_begins()
            print('ready', flush=True)
            Path(sys.argv[1]).write_text(str(os.getpid()))
            time.sleep(60)

        if __name__ == '__main__':
            lines = StopLines(1)
            multiprocessing.get_context('spawn').Process(target=be_a_process, args=lines.ends).start()
            time.sleep(60)
    """
    with running(program, tmp_path / "last-word") as process:
        pid = int((tmp_path / "last-word").read_text())
        process.kill()
        process.wait()
        deadline = time.monotonic() + 5
        while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
