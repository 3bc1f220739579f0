"""The part of the Hugging Face Hub's HTTP interface that `huggingface_hub` uses to look up and download; see `uploads`.

    GET       /                                              the repositories, also for a readiness probe
    GET       /api/<kind>/<repository>[/revision/<revision>]  model_info, dataset_info
    GET       /api/<kind>/<repository>/tree/<revision>[/<folder>]  list_repo_tree
    GET       /api/<kind>/<repository>/refs                  list_repo_refs
    HEAD, GET /[datasets/]<repository>/resolve/<revision>/<path>   hf_hub_download, with Range

Headers and error codes are those that huggingface_hub/file_download.py and utils/_http.py look at.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from dev.hub import uploads
from dev.hub.listing import describe_repository, list_folder
from dev.hub.store import (
    Commit,
    Repository,
    RepositoryKind,
    Store,
    StoredFile,
    UnknownRepositoryError,
    UnknownRevisionError,
)

logger = logging.getLogger(__name__)

_API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(?P<rest>/.*)?")
_RESOLVE = re.compile(r"/(?P<datasets>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_LFS_BATCH = re.compile(r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
_UPLOAD = re.compile(r"/uploads/(?P<sha256>[0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(?P<first>\d*)-(?P<last>\d*)")
_IDLE_TIMEOUT_SECONDS = 120


class RefusedRequestError(Exception):
    """An answer other than success. `error_code` is the Hub's X-Error-Code, which clients turn into exceptions."""

    def __init__(self, status: HTTPStatus, error_code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = error_code


@dataclass(frozen=True)
class LineCut:
    """A line that breaks `times` times, whenever a file's transfer reaches byte `offset_bytes` of that file.

    Counted from the start of the file and not of the response: a client that resumes runs into the same place again,
    so that a large `times` is a Hub that has gone away for good.
    """

    offset_bytes: int
    times: int


class HubServer(ThreadingHTTPServer):
    """Serves a store. Port 0 takes a free port; `endpoint` says which.

    token: the bearer token that opens gated repositories and may upload; empty means that nothing does.
    line_cut: breaks connections half-way through a file, for tests of resuming.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, store: Store, host: str, port: int, token: str = "", line_cut: LineCut | None = None) -> None:
        super().__init__((host, port), _Handler)
        self.store = store
        self.token = token
        self._line_cut = line_cut or LineCut(offset_bytes=0, times=0)
        self.expected_uploads: set[str] = set()
        self._cuts_left = self._line_cut.times
        self._cut_lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be for a client on this machine."""
        host, port = cast(tuple[str, int], self.server_address[:2])
        return f"http://{host}:{port}"

    def claim_cut(self, first: int, end: int) -> int | None:
        """The offset to break at while bytes [first, end) of a file are sent, or None to send them all."""
        offset = self._line_cut.offset_bytes
        with self._cut_lock:
            if self._cuts_left == 0 or not first <= offset < end:
                return None
            self._cuts_left -= 1
            return offset


@contextmanager
def serving(server: HubServer) -> Iterator[HubServer]:
    """Run the server in a thread for the length of a `with` block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "finetune-hub-mirror"
    timeout = _IDLE_TIMEOUT_SECONDS
    disable_nagle_algorithm = True  # head and body are two writes; Nagle would hold the second for 40 ms
    server: HubServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        try:
            if self.command in ("POST", "PUT"):
                self._take(path)
                return
            if match := _RESOLVE.fullmatch(path):
                self._send_file(match)
            elif match := _API.fullmatch(path):
                self._send_json(self._api(match))
            elif path == "/":
                self._send_json([f"{found.kind}/{found.name}" for found in self.server.store.list_repositories()])
            else:
                self._refuse(RefusedRequestError(HTTPStatus.NOT_FOUND, "", f"this mirror does not serve {path}"))
        except uploads.BadUploadError as error:
            self._refuse(RefusedRequestError(HTTPStatus.BAD_REQUEST, "", str(error)))
        except UnknownRepositoryError as error:
            self._refuse(RefusedRequestError(HTTPStatus.NOT_FOUND, "RepoNotFound", str(error)))
        except UnknownRevisionError as error:
            self._refuse(RefusedRequestError(HTTPStatus.NOT_FOUND, "RevisionNotFound", str(error)))
        except RefusedRequestError as refusal:
            self._refuse(refusal)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
            logger.info("%s went away during %s %s", self.address_string(), self.command, self.path)

    # Repositories as JSON

    def _api(self, match: re.Match[str]) -> object:
        repository = self.server.store.find(cast(RepositoryKind, match["kind"]), unquote(match["name"]))
        verb, _, argument = (match["rest"] or "/revision/main").lstrip("/").partition("/")
        revision, _, folder = argument.partition("/")
        if verb == "revision":
            return describe_repository(repository, repository.resolve(unquote(revision)))
        if verb == "tree":
            commit = repository.resolve(unquote(revision))
            entries = list_folder(commit, unquote(folder))
            if not entries:
                raise _MissingEntryError(f"{repository.kind}/{repository.name} has no folder {folder!r}", commit.sha)
            return entries
        if verb == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.resolve("main").sha}
            return {"branches": [main], "tags": [], "converts": []}
        raise RefusedRequestError(HTTPStatus.NOT_FOUND, "", f"this mirror does not serve {self.path}")

    def _send_json(self, content: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # Uploads

    def _take(self, path: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        store = self.server.store
        if match := _UPLOAD.fullmatch(path):
            self._keep(match["sha256"], body)
            return
        self._check_token("this repository")
        if match := _LFS_BATCH.fullmatch(path):
            wanted = json.loads(body)["objects"]
            self.server.expected_uploads |= {entry["oid"] for entry in wanted}
            self._send_json(uploads.choose_transfers(store, self.server.endpoint, wanted))
        elif path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := _API.fullmatch(path):
            self._send_json(self._change(unquote(match["name"]), match["rest"] or "", body))
        else:
            raise RefusedRequestError(HTTPStatus.NOT_FOUND, "", f"this mirror does not take {path}")

    def _create(self, request: dict[str, Any]) -> None:
        name = f"{request.get('organization')}/{request['name']}"
        if uploads.exists(self.server.store, name):
            self._send_json({"url": f"{self.server.endpoint}/{name}"}, HTTPStatus.CONFLICT)
        else:
            self._send_json({"url": f"{self.server.endpoint}/{uploads.create_repository(self.server.store, request)}"})

    def _change(self, name: str, verb: str, body: bytes) -> object:
        if verb == "/preupload/main":
            return uploads.choose_modes(json.loads(body)["files"])
        if verb == "/commit/main":
            made = uploads.commit(self.server.store, name, body.splitlines())
            url = f"{self.server.endpoint}/{name}/commit/{made.sha}"
            return {"success": True, "commitOid": made.sha, "commitUrl": url}
        raise RefusedRequestError(HTTPStatus.NOT_FOUND, "", f"this mirror does not take {verb}")

    def _keep(self, sha256: str, content: bytes) -> None:
        # Whoever was told this address had a token; on the Hub it is a signed address of an object store.
        if sha256 not in self.server.expected_uploads or hashlib.sha256(content).hexdigest() != sha256:
            raise uploads.BadUploadError(f"nobody asked to upload this as {sha256}, or it has another digest")
        blob = self.server.store.root / "blobs" / sha256
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        self._send_json({})

    # Files

    def _send_file(self, match: re.Match[str]) -> None:
        kind: RepositoryKind = "datasets" if match["datasets"] else "models"
        repository = self.server.store.find(kind, unquote(match["name"]))
        self._check_access(repository)
        commit = repository.resolve(unquote(match["revision"]))
        file = commit.files.get(unquote(match["path"]))
        if file is None:
            raise _missing_entry(repository, commit, unquote(match["path"]))
        first, end = self._requested_range(file)
        self.send_response(HTTPStatus.OK if end - first == file.size_bytes else HTTPStatus.PARTIAL_CONTENT)
        self._send_file_headers(commit, file, first, end)
        if self.command == "GET":
            self._send_body(file, first, end)

    def _check_access(self, repository: Repository) -> None:
        if repository.settings.gated:
            self._check_token(repository.name)

    def _check_token(self, name: str) -> None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            message = f"Access to {name} is restricted: log in with a token"
            raise RefusedRequestError(HTTPStatus.UNAUTHORIZED, "GatedRepo", message)
        if not self.server.token or token.strip() != self.server.token:
            message = f"Access to {name} is restricted and this token is not in the authorized list"
            raise RefusedRequestError(HTTPStatus.FORBIDDEN, "GatedRepo", message)

    def _requested_range(self, file: StoredFile) -> tuple[int, int]:
        """The bytes [first, end) that were asked for: the whole file unless a Range header names one part of it."""
        match = _RANGE.fullmatch(self.headers.get("Range", "").strip())
        if match is None or not (match["first"] or match["last"]):
            return 0, file.size_bytes
        if not match["first"]:  # "bytes=-500" is the last 500 bytes
            return max(0, file.size_bytes - int(match["last"])), file.size_bytes
        first = int(match["first"])
        end = min(int(match["last"]) + 1, file.size_bytes) if match["last"] else file.size_bytes
        if first >= end:
            message = f"{file.path} has {file.size_bytes} bytes; asked for {match.group()}"
            raise RefusedRequestError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "", message)
        return first, end

    def _send_file_headers(self, commit: Commit, file: StoredFile, first: int, end: int) -> None:
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - first))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{file.etag}"')
        self.send_header("X-Repo-Commit", commit.sha)
        if file.is_lfs:
            self.send_header("X-Linked-Size", str(file.size_bytes))
            self.send_header("X-Linked-Etag", f'"{file.sha256}"')
        if end - first != file.size_bytes:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{file.size_bytes}")
        self.end_headers()

    def _send_body(self, file: StoredFile, first: int, end: int) -> None:
        cut = self.server.claim_cut(first, end)
        num_bytes = (end if cut is None else cut) - first
        self.wfile.flush()
        if num_bytes:  # NB: socket.sendfile refuses a count of 0
            with self.server.store.blob_path(file).open("rb") as blob:
                self.connection.sendfile(blob, offset=first, count=num_bytes)
        if cut is not None:
            logger.warning("cut the line at byte %d of %s", cut, file.path)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    # Refusals and the log

    def _refuse(self, refusal: RefusedRequestError) -> None:
        body = json.dumps({"error": str(refusal)}).encode()
        self.send_response(refusal.status)
        if refusal.error_code:
            self.send_header("X-Error-Code", refusal.error_code)
        self.send_header("X-Error-Message", str(refusal).encode("ascii", "replace").decode())
        if isinstance(refusal, _MissingEntryError):
            self.send_header("X-Repo-Commit", refusal.commit_sha)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002 (http.server's signature)
        # The path and never the headers: those carry the token.
        status = code.value if isinstance(code, HTTPStatus) else code
        logger.info("%s %s %s", self.command, self.path, status)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's signature)
        logger.info(format, *args)


class _MissingEntryError(RefusedRequestError):
    """The commit has no such file. The commit goes with the answer: clients cache the absence under it."""

    def __init__(self, message: str, commit_sha: str) -> None:
        super().__init__(HTTPStatus.NOT_FOUND, "EntryNotFound", message)
        self.commit_sha = commit_sha


def _missing_entry(repository: Repository, commit: Commit, path: str) -> _MissingEntryError:
    return _MissingEntryError(f"{repository.kind}/{repository.name} has no file {path!r} at {commit.sha}", commit.sha)
