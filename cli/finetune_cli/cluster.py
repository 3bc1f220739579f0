"""The objects of a cluster and its pods, as their user may see and change them.

Objects come and go as the API server writes them; what they mean is for others to say.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from finetune_cli.errors import CommandError, NotThere
from finetune_cli.kinds import Kind

if TYPE_CHECKING:
    from finetune_cli.connection import Connection

Body = dict[str, Any]

FIELD_MANAGER = "kubectl-finetune"
_PAGE = "500"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


@dataclass(frozen=True)
class Output:
    """What a command in a container wrote, and how it ended."""

    stdout: bytes
    stderr: str
    exit_code: int


class Cluster:
    """A cluster as its user sees it, in one namespace."""

    def __init__(self, connection: "Connection") -> None:
        self.namespace = connection.namespace
        self._connection = connection

    @classmethod
    def open(cls, kubeconfig: Path | None, context: str | None, namespace: str | None) -> Self:
        """Read credentials as kubectl does: --kubeconfig, KUBECONFIG, ~/.kube/config, then the pod's service account.

        Raises:
            CommandError: there are none, or the file is wrong.
        """
        # Here and not above: it is half of what a command imports, and help, completion and `init` ask no cluster.
        from finetune_cli.connection import Connection

        return cls(Connection.open(kubeconfig, context, namespace))

    # --- objects ------------------------------------------------------------------------------------------------------

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Body:
        """Return an object.

        Raises:
            CommandError: it is not there, may not be read, or nobody answers.
        """
        return self._request("GET", kind.path(namespace or self.namespace, name), f"{kind.name} {name}")

    def list(
        self, kind: Kind, *, everywhere: bool = False, labels: str = "", fields: str = "", namespace: str | None = None
    ) -> list[Body]:
        """Return the objects of a kind, those of all namespaces when `everywhere`.

        Raises:
            CommandError: they may not be listed, or nobody answers.
        """
        path = kind.path(None if everywhere else namespace or self.namespace)
        query = {"limit": _PAGE, "labelSelector": labels, "fieldSelector": fields}
        objects: list[Body] = []
        while True:
            page = self._request("GET", path, f"{kind.plural}", query=query)
            objects += page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return objects
            query["continue"] = token

    def create(self, kind: Kind, body: Mapping[str, Any], *, dry_run: bool = False) -> Body:
        """Make an object and return it as it is now.

        Raises:
            CommandError: the API server refuses it.
        """
        query = {"fieldManager": FIELD_MANAGER} | ({"dryRun": "All"} if dry_run else {})
        what = f"{kind.name} {body['metadata'].get('name', '')}"
        return self._request("POST", kind.path(self.namespace), what, query=query, body=body)

    def patch(self, kind: Kind, name: str, patch: Mapping[str, Any]) -> Body:
        """Change an object by a JSON merge patch and return it as it is now.

        Raises:
            CommandError: it is not there, or the API server refuses the change.
        """
        path, query = kind.path(self.namespace, name), {"fieldManager": FIELD_MANAGER}
        return self._request("PATCH", path, f"{kind.name} {name}", query=query, body=patch, content_type=MERGE_PATCH)

    def apply(self, kind: Kind, body: Mapping[str, Any], *, dry_run: bool = False) -> Body:
        """Make or change an object by server-side apply and return it as it is now.

        Raises:
            CommandError: the API server refuses it.
        """
        name = str(body["metadata"]["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        path = kind.path(self.namespace, name)
        return self._request("PATCH", path, f"{kind.name} {name}", query=query, body=body, content_type=APPLY_PATCH)

    def delete(self, kind: Kind, name: str) -> None:
        """Delete an object with what it owns; nothing happens when it is gone already.

        Raises:
            CommandError: it may not be deleted.
        """
        query = {"propagationPolicy": "Background"}
        try:
            self._request("DELETE", kind.path(self.namespace, name), f"{kind.name} {name}", query=query)
        except NotThere:
            return

    def serves(self, kind: Kind) -> bool:
        """Return whether the cluster knows a kind.

        Raises:
            CommandError: nobody answers.
        """
        try:
            found = self._request("GET", f"/apis/{kind.group}/{kind.version}", f"{kind.plural}.{kind.group}")
        except NotThere:
            return False
        return any(resource["name"] == kind.plural for resource in found["resources"])

    # --- pods ---------------------------------------------------------------------------------------------------------

    def log_lines(self, pod: str, *, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        """Yield the lines of a pod's log, with `follow` until its container ends.

        Raises:
            CommandError: there is no log, or it may not be read.
        """
        query = {"follow": "true"} if follow else {}
        query |= {} if tail is None else {"tailLines": str(tail)}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        yield from self._connection.lines(path, f"log of pod {pod}", query, endless=follow)

    def pod_page(self, pod: str, port: int, path: str, seconds: float = 5.0) -> str:
        """Return a page that a pod serves, fetched by the API server.

        Raises:
            CommandError: the pod does not answer, or this user may not ask it.
        """
        page = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:{port}/proxy{path}"
        return self._connection.page(page, f"pods/proxy of {pod}", seconds).decode(errors="replace")

    def run(self, pod: str, command: Sequence[str], container: str, seconds: float | None = None) -> Output:
        """Run a command in a container of a pod and return what it wrote.

        Raises:
            CommandError: the container does not run, or this user may not do that.
        """
        stdout, process = b"", self._connection.start(pod, command, container)
        for chunk in process.chunks(seconds):
            stdout += chunk
        return Output(stdout, process.stderr, process.exit_code)

    def stream(self, pod: str, command: Sequence[str], container: str) -> Iterator[bytes]:
        """Yield what a command in a container writes, as it comes.

        Raises:
            CommandError: the command or the connection failed.
        """
        process = self._connection.start(pod, command, container)
        yield from process.chunks(None)
        if process.exit_code != 0:
            raise CommandError(f"`{' '.join(command)}` in pod {pod} ended with {process.exit_code}: {process.stderr}")

    def _request(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Body:
        content = None if body is None else json.dumps(body)
        answer = json.loads(self._connection.answer(method, path, what, query or {}, content, content_type))
        return answer if isinstance(answer, dict) else {}
