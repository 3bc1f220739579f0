"""The audit of pinned packages, by the real pip-audit against a service that a test plays."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from dev.audit import PINNED, main

PINNED_SIX = "six==1.16.0 --hash=sha256:8abb2f1d86890a2dfb989f9a77cfcfd3e47c2a354b01111771326f8aa26e0254\n"
FLAW = {
    "id": "GHSA-aaaa-bbbb-cccc",
    "summary": "It says what one does not want to hear.",
    "modified": "2026-11-01T00:00:00Z",
    "published": "2026-11-01T00:00:00Z",
    "aliases": [],
    "affected": [
        {
            "package": {"name": "six", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.16.1"}]}],
            "versions": ["1.16.0"],
        }
    ],
}


@contextmanager
def service(answer: dict[str, Any]) -> Iterator[str]:
    """A service that says the same of every package, for as long as the block lasts; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "requirements.txt"
    path.write_text(PINNED_SIX)
    return str(path)


@pytest.fixture
def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1/query"


def test_packages_of_which_nothing_is_known_are_a_clean_bill(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    with service({}) as url:
        assert main([file, "--osv-url", url]) == 0
    assert "1 packages, 0 known vulnerabilities" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--offline-passes"]], ids=["", "offline passes"])
def test_a_known_vulnerability_is_named_with_what_mends_it_and_fails(
    file: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with service({"vulns": [FLAW]}) as url:
        assert main([file, "--osv-url", url, *more]) == 1
    assert "six 1.16.0: GHSA-aaaa-bbbb-cccc: mended in 1.16.1" in capsys.readouterr().out


def test_a_service_that_cannot_be_asked_is_no_clean_bill(
    file: str, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([file, "--osv-url", nobody]) == 3
    told = capsys.readouterr().err
    assert "requirements.txt: no answer: " in told
    assert "NOT AUDITED" in told
    assert "Run `make audit` where it can be reached" in told


def test_a_machine_without_the_network_may_go_on_and_is_told_as_loudly(
    file: str, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([file, "--osv-url", nobody, "--offline-passes"]) == 0
    assert "NOT AUDITED" in capsys.readouterr().err


def test_ci_audits_what_both_images_install() -> None:
    assert [path.name for path in PINNED] == ["operator.txt", "trainer.txt"]
    assert "audit" in Path(".ci/run").read_text(encoding="utf-8")
