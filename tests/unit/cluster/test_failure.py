"""A failure names the part, shows the end of its log, and says what to do."""

from pathlib import Path

import pytest

from dev.cluster.commands import output_of, run_logged
from dev.cluster.failure import ClusterError, last_lines


def test_a_failed_command_shows_the_last_lines_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    command = ["sh", "-c", "for i in $(seq 40); do echo line $i; done; echo 'no space left on device' >&2; exit 3"]

    with pytest.raises(ClusterError) as failure:
        run_logged("program kubernetes", command, log=log, advice="free some disk")

    lines = failure.value.report().splitlines()
    assert lines[0] == "FAILED: program kubernetes: sh ended with status 3"
    assert lines[1] == f"  last lines of {log}:"
    assert lines[2] == "  | line 27"
    assert lines[-2:] == ["  | no space left on device", "  what to do: free some disk"]


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="program no-such-program is not there"):
        run_logged("base image", ["no-such-program"], log=tmp_path / "log", advice="")


def test_a_short_command_fails_with_what_it_said() -> None:
    with pytest.raises(ClusterError, match="status 2: cannot open"):
        output_of("network", ["sh", "-c", "echo cannot open >&2; exit 2"])


def test_a_log_that_was_never_written_is_no_second_failure(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none.log") == ["(no log was written)"]
