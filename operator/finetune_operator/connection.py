"""Requests to the API server: credentials, retries, errors that say what to do. The only file that knows kubernetes.

Requests that fail in passing (conflict, too many, server errors, no answer) are made again.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
import orjson
from kubernetes.aio import client, config
from yarl import URL

from finetune_operator import names
from finetune_operator.errors import ApiError
from finetune_operator.metrics import Metrics
from finetune_operator.resources import Resource

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

_METHODS = {"get": "GET", "list": "GET", "watch": "GET", "create": "POST", "patch": "PATCH", "delete": "DELETE"}
_TRANSIENT_CODES = frozenset({0, 409, 429, 500, 502, 503, 504})
_ALREADY_EXISTS = "AlreadyExists"  # the only conflict that does not pass
_RETRY_DELAYS_SECONDS = (0.1, 0.4, 1.6)
_LONGEST_RETRY_AFTER_SECONDS = 30.0
_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30.0)
# A watch that hears nothing for so long, no bookmark either, is begun anew: the other end may be gone.
_WATCH_SECONDS = 600
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=150.0)
# One event of a watch is a line, and one object is all of it.
_LONGEST_LINE_BYTES = 2**21
_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError)


class Connection:
    """A connection to the API server, or rather as many as there are requests at once.

    The official client finds the cluster and its credentials. The requests are made here: its own turn documents into
    models and into text with the slower of Python's libraries (docs/design/2026-11-27-scale.md).
    """

    def __init__(self, configuration: client.Configuration, metrics: Metrics) -> None:
        """Connect to the cluster that a configuration names.

        Must be called in a running event loop.
        """
        self._configuration = configuration
        self._metrics = metrics
        # NB: without a limit: requests are as many as there are workers, and watches must not take their places.
        connector = aiohttp.TCPConnector(ssl=client.rest.RESTClientObject(configuration).ssl_context, limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"Accept": "application/json", "User-Agent": names.OPERATOR},
            proxy=configuration.proxy,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_LONGEST_LINE_BYTES,
        )

    @classmethod
    async def open(cls, environment: Mapping[str, str], metrics: Metrics) -> Self:
        """Connect with the kubeconfig that KUBECONFIG names, else with the pod's service account, else ~/.kube/config.

        Raises:
            ApiError: there are no credentials.
        """
        configuration = client.Configuration()
        try:
            if SERVICE_ACCOUNT_TOKEN.exists() and not environment.get("KUBECONFIG"):
                config.load_incluster_config(client_configuration=configuration)
            else:
                await config.load_kube_config(
                    config_file=environment.get("KUBECONFIG"), client_configuration=configuration
                )
        except config.ConfigException as error:
            raise ApiError(f"no way to reach a cluster: {error}. Set KUBECONFIG, or run in a pod.") from error
        return cls(configuration, metrics)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def request(
        self,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str | None = None,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """Make a request, again where that may help, and return the answer.

        Args:
            verb: as a ClusterRole names it.
            resource: the kind of object.
            namespace: where; None means all namespaces.
            name: which object; None means all of the kind.
            query: parameters of the request.
            body: what is sent.
            content_type: how it is to be understood.

        Raises:
            ApiError: the API server refused, or did not answer.
            ValueError: the operator has no business doing this; see `resources`.
        """
        _check(verb, resource)
        for delay_seconds in (*_RETRY_DELAYS_SECONDS, None):
            code, answer, retry_after_seconds = await self._send(
                verb, resource.path(namespace, name), query, body, content_type
            )
            self._metrics.api_requests.labels(verb, resource.rbac_name, str(code)).inc()
            if 200 <= code < 300:
                return answer
            if delay_seconds is None or code not in _TRANSIENT_CODES or answer.get("reason") == _ALREADY_EXISTS:
                break
            await asyncio.sleep(max(delay_seconds, retry_after_seconds))
        raise _error(verb, resource, namespace, name, code, answer)

    async def watch(
        self, resource: Resource, namespace: str | None, query: Sequence[tuple[str, str]]
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a kind, as the API server sends them, until it ends the watch.

        Raises:
            ApiError: the API server refused, or stopped answering.
            ValueError: the operator has no business watching this; see `resources`.
        """
        _check("watch", resource)
        query = [("watch", "true"), ("timeoutSeconds", str(_WATCH_SECONDS)), *query]
        try:
            response = await self._open("watch", resource.path(namespace), query, None, "", _WATCH_TIMEOUT)
            self._metrics.api_requests.labels("watch", resource.rbac_name, str(response.status)).inc()
            async with response:
                if response.status != 200:
                    answer = _document(await response.read())
                    raise _error("watch", resource, namespace, None, response.status, answer)
                try:
                    async for line in response.content:
                        yield orjson.loads(line)
                except TimeoutError:
                    return
        except _NO_ANSWER as error:
            raise _error("watch", resource, namespace, None, 0, {"message": _words(error)}) from error

    async def _send(
        self,
        verb: str,
        path: str,
        query: Sequence[tuple[str, str]],
        body: Mapping[str, Any] | None,
        content_type: str,
    ) -> tuple[int, dict[str, Any], float]:
        """Send a request; return its status code, its answer, and for how long the server wants to be left alone.

        Code 0 means that no answer came; the answer's `message` then says why.
        """
        try:
            response = await self._open(verb, path, query, body, content_type, _REQUEST_TIMEOUT)
            data = await response.read()
        except _NO_ANSWER as error:
            return 0, {"message": _words(error)}, 0.0
        retry_after = response.headers.get("Retry-After", "")
        retry_after_seconds = min(float(retry_after), _LONGEST_RETRY_AFTER_SECONDS) if retry_after.isdigit() else 0.0
        return response.status, _document(data), retry_after_seconds

    async def _open(
        self,
        verb: str,
        path: str,
        query: Sequence[tuple[str, str]],
        body: Mapping[str, Any] | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """Send a request and return as soon as the answer begins."""
        headers = {} if body is None else {"Content-Type": content_type}
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        if token is not None:
            headers["Authorization"] = token
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        return await self._session.request(
            _METHODS[verb],
            URL(url, encoded=True),
            headers=headers,
            data=None if body is None else orjson.dumps(body),
            timeout=timeout,
            server_hostname=self._configuration.tls_server_name,
        )


def _check(verb: str, resource: Resource) -> None:
    if verb not in resource.verbs:
        raise ValueError(f"{verb} {resource.rbac_name} is not in the table of what the operator does")


def _document(data: bytes) -> dict[str, Any]:
    try:
        answer = orjson.loads(data)
    except ValueError:
        return {"message": data[:200].decode(errors="replace")}
    return answer if isinstance(answer, dict) else {}


def _words(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip()


def _error(
    verb: str, resource: Resource, namespace: str | None, name: str | None, code: int, answer: Mapping[str, Any]
) -> ApiError:
    what = " ".join(part for part in (verb, resource.rbac_name, name) if part)
    where = f"in namespace {namespace}" if namespace is not None else "in all namespaces"
    return ApiError(_explain(f"{what} {where}", code, str(answer.get("message", ""))), code or None)


def _explain(what: str, code: int, message: str) -> str:
    if code == 0:
        return f"{what}: the API server did not answer: {message}"
    if code == 403 and " cannot " in message:
        return f"{what} is not permitted: {message}. Give the operator's ServiceAccount the chart's role."
    return f"{what}: the API server answered {code}: {message}"
