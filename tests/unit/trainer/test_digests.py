import os
import threading
import time
from pathlib import Path

from finetune_trainer.digests import digest_of, digests_of

# Of FIPS 180-2's first example, and of nothing.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_digests_come_in_the_order_of_the_files_which_is_not_that_of_their_sizes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("large", "empty", "small")]
    paths[0].write_bytes(b"x" * 20_000_000)
    paths[1].write_bytes(b"")
    paths[2].write_bytes(b"abc")
    assert digests_of(paths)[1:] == [NOTHING, ABC]
    assert digests_of(paths) == [digest_of(path) for path in paths]
    assert digests_of([]) == []


def test_files_are_read_side_by_side(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for pipe in (first, second):
        os.mkfifo(pipe)
    second_was_read_meanwhile = threading.Event()

    def write() -> None:
        """Let the first file end only after the second was opened by its reader, or after ten seconds."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not second_was_read_meanwhile.is_set():
            try:
                os.close(os.open(second, os.O_WRONLY | os.O_NONBLOCK))
                second_was_read_meanwhile.set()
            except OSError:  # nobody has it open
                time.sleep(0.01)
        first.write_bytes(b"abc")
        if not second_was_read_meanwhile.is_set():
            second.write_bytes(b"")

    writer = threading.Thread(target=write)
    writer.start()
    digests = digests_of([first, second])
    writer.join()
    assert second_was_read_meanwhile.is_set()
    assert digests == [ABC, NOTHING]
