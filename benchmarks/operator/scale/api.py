"""The API server as the benchmark sees it: a light client, because it shares the cores with what it measures."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Self

import aiohttp

Body = dict[str, Any]

# How many requests of the benchmark are under way at once.
_CONCURRENCY = 32
_WRITING_METHODS = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})
_METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_REQUEST_TOTAL = re.compile(r"^apiserver_request_total\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class ApiServer:
    """An administrator's connection to an API server."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._slots = asyncio.Semaphore(_CONCURRENCY)

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, token: str) -> AsyncIterator[Self]:
        """Connect for as long as the block lasts."""
        connector = aiohttp.TCPConnector(ssl=False, limit=0)
        headers = {"Authorization": f"Bearer {token}"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(url, connector=connector, headers=headers, timeout=timeout) as session:
            yield cls(session)

    async def create(self, path: str, body: Body, about_to_send: Callable[[], None]) -> None:
        """Create an object in a collection; `about_to_send` is called when it is its turn.

        Raises:
            aiohttp.ClientResponseError: the API server refused.
        """
        async with self._slots:
            about_to_send()
            async with self._session.post(path, json=body) as response:
                await _answer(response)

    async def list_objects(self, path: str) -> list[Body]:
        """Return the objects of a collection."""
        async with self._session.get(path) as response:
            return list((await _answer(response))["items"])

    async def count(self, path: str) -> int:
        """Return how many objects a collection has."""
        headers = {"Accept": _METADATA_ONLY.replace("PartialObjectMetadata", "PartialObjectMetadataList")}
        async with self._session.get(path, params={"limit": "1"}, headers=headers) as response:
            answer = await _answer(response)
        return len(answer["items"] or ()) + int(answer["metadata"].get("remainingItemCount", 0))

    async def delete_all(self, path: str) -> None:
        """Delete the objects of a collection, and in the background what they own.

        The API server gives up on a thousand of them after a minute, and goes on where it was when it is asked again.
        """
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        while True:
            async with self._session.delete(path, json=body) as response:
                if response.status != HTTPStatus.GATEWAY_TIMEOUT:
                    await _answer(response)
                    return

    async def watch(self, path: str, see: Callable[[str, Body], None], *, metadata_only: bool) -> None:
        """Tell `see` of every event of a collection until cancelled.

        Raises:
            aiohttp.ClientError: the API server refused, or ended the watch because it was not read fast enough.
        """
        headers = {"Accept": _METADATA_ONLY} if metadata_only else {}
        async with self._session.get(path, params={"limit": "1"}) as response:
            version = (await _answer(response))["metadata"]["resourceVersion"]
        while True:
            parameters = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": version}
            async with self._session.get(path, params=parameters, headers=headers) as response:
                response.raise_for_status()
                async for line in _lines(response.content):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise aiohttp.ClientPayloadError(f"watch of {path}: {event['object'].get('message')}")
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        see(event["type"], event["object"])

    async def writes(self) -> Counter[tuple[str, str]]:
        """Return how many writing requests all clients have made so far, by verb and resource."""
        async with self._session.get("/metrics") as response:
            text = await response.text()
        return Counter(dict(_writes(_REQUEST_TOTAL.finditer(text))))


def _writes(samples: Iterable[re.Match[str]]) -> Iterable[tuple[tuple[str, str], int]]:
    totals: Counter[tuple[str, str]] = Counter()
    for sample in samples:
        labels = dict(_LABEL.findall(sample["labels"]))
        if labels["verb"] in _WRITING_METHODS:
            resource = "/".join(part for part in (labels["resource"], labels["subresource"]) if part)
            totals[labels["verb"].lower(), resource] += int(float(sample["value"]))
    return totals.items()


async def _answer(response: aiohttp.ClientResponse) -> Body:
    if response.status >= 400:
        raise aiohttp.ClientResponseError(
            response.request_info, (), status=response.status, message=(await response.text())[:500]
        )
    return dict(json.loads(await response.read()))


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split a stream into lines of any length, which `readline` is not made for."""
    rest = b""
    async for chunk in stream.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
