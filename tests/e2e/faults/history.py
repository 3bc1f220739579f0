"""What etcd remembers of pods, which the API server has forgotten when it was away.

A new API server knows nothing of what was written before it began, and answers a watch that asks for it with 410 Gone.
etcd keeps every revision until it is compacted, which is for minutes.
"""

import base64
import json
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dev.cluster import certificates
from dev.cluster.control_plane import ETCD_URL

PODS = "/registry/pods/"  # where the API server keeps them
_EVERY_KEY = base64.b64encode(b"\0").decode()  # as the first and as the end: https://etcd.io/docs/v3.4/learning/api/
_SILENCE_SECONDS = 30.0


class Forgotten(Exception):
    """etcd does not keep what was asked for any more."""


@dataclass(frozen=True)
class PodName:
    """A pod, of which no more is known than what it was called."""

    namespace: str
    name: str


class History:
    """The revisions of an etcd.

    Args:
        url: where it answers.
        credentials: with which it lets somebody in; None where it asks for none.
    """

    def __init__(self, url: str, credentials: ssl.SSLContext | None = None) -> None:
        self._url = url
        self._credentials = credentials

    def came_and_went(self, after: int, until: int) -> list[PodName]:
        """Return the pods that were made after one revision and removed before the next is over.

        Raises:
            Forgotten: the revisions were compacted.
            OSError: etcd does not answer, or stays silent.
        """
        made: set[str] = set()
        gone: list[PodName] = []
        for event_type, key, is_new in self._events(after, until):
            if not key.startswith(PODS):
                continue
            if event_type == "DELETE" and key in made:
                gone.append(PodName(*key.removeprefix(PODS).split("/", 1)))
            elif is_new:
                made.add(key)
        return gone

    def _events(self, after: int, until: int) -> Iterator[tuple[str, str, bool]]:
        """Yield each change of an object: PUT or DELETE, its key, and whether it was made by it.

        etcd tells them in their order, and each revision is a change of some object: that of `until` is the last.
        """
        if after >= until:
            return
        for answer in self._watch(after + 1):
            if answer.get("compact_revision"):
                raise Forgotten(f"etcd was compacted at {answer['compact_revision']}, after {after}")
            for event in answer.get("events", ()):
                told = event["kv"]
                key = base64.b64decode(told["key"]).decode()
                yield event.get("type", "PUT"), key, told["mod_revision"] == told.get("create_revision")
                if int(told["mod_revision"]) >= until:
                    return

    def _watch(self, revision: int) -> Iterator[dict[str, Any]]:
        """Yield what a watch answers that begins at a revision: https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/."""
        wanted = {"key": _EVERY_KEY, "range_end": _EVERY_KEY, "start_revision": revision}
        body = json.dumps({"create_request": wanted}).encode()
        request = urllib.request.Request(f"{self._url}/v3/watch", body)
        with urllib.request.urlopen(request, timeout=_SILENCE_SECONDS, context=self._credentials) as answers:
            for line in answers:
                yield json.loads(line)["result"]


def history_of_embedded_cluster() -> History:
    """Return the history of the embedded cluster, read with the API server's own credentials."""
    credentials = ssl.create_default_context(cafile=str(certificates.CA_CERTIFICATE))
    credentials.load_cert_chain(certificates.ETCD_CLIENT.certificate, certificates.ETCD_CLIENT.key)
    return History(ETCD_URL, credentials)
