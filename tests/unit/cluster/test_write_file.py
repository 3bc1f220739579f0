"""The files of the embedded cluster, which steps write side by side."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from dev.cluster.certificates import write_file


def test_two_steps_may_write_one_file_at_once(tmp_path: Path) -> None:
    start = Barrier(2)

    def write(path: Path) -> None:
        start.wait()
        write_file(path, "the same of both\n" * 100)

    with ThreadPoolExecutor(2) as steps:
        for number in range(200):
            path = tmp_path / str(number) / "hosts.toml"
            for written in [steps.submit(write, path), steps.submit(write, path)]:
                written.result()
            assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [
                ("hosts.toml", "the same of both\n" * 100)
            ]


def test_a_file_has_the_permissions_that_were_asked_for(tmp_path: Path) -> None:
    for name, mode in (("public", 0o644), ("secret", 0o600)):
        write_file(tmp_path / name, "text", mode)
        assert (tmp_path / name).stat().st_mode & 0o777 == mode
