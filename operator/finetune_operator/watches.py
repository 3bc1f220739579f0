"""Follows the children of all jobs: lists each kind, and from then on hears of every change.

FineTuneJobs themselves are watched by kopf. Their children are not, because kopf keeps a task and a queue for every
object and prepares every event for handlers that we do not have: at a thousand jobs that is most of the work
(docs/design/2026-11-23-scale.md).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from finetune_operator import names
from finetune_operator.cluster import Cluster
from finetune_operator.errors import ApiError
from finetune_operator.news import Weight, weigh
from finetune_operator.queue import Backoff
from finetune_operator.resources import FINE_TUNE_JOBS, Resource
from finetune_operator.store import Body, JobKey, Store

logger = logging.getLogger(__name__)

# Not longer: an API server that is back is to be heard of soon, and a handful of requests burden nobody.
_BACKOFF = Backoff(first_seconds=0.5, longest_seconds=5.0)
_PAUSE_SECONDS = 0.1  # between two watches, should an API server end each at once
_GONE = 410  # the API server has forgotten what came after the version that we know


class Watches:
    """Keeps the store up to date, and wakes the job of every object that changes."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        namespaces: Sequence[str | None],
        wake: Callable[[JobKey], None],
        wake_in_a_moment: Callable[[JobKey], None],
    ) -> None:
        """Follow nothing yet.

        Args:
            cluster: the API server.
            store: what is kept up to date.
            namespaces: where to look; None stands for all of them.
            wake: called with each job of which something was heard.
            wake_in_a_moment: called in its place when what was heard can wait.
        """
        self._cluster = cluster
        self._store = store
        self._namespaces = namespaces
        self._wake = wake
        self._wake_in_a_moment = wake_in_a_moment
        self._versions: dict[tuple[Resource, str | None], str] = {}
        self._followed: list[Resource] = []
        self._group: asyncio.TaskGroup | None = None

    @property
    def followed(self) -> tuple[Resource, ...]:
        """The kinds that are followed."""
        return tuple(self._followed)

    async def follow(self, resource: Resource) -> None:
        """List the objects of a kind and hear of every change after that, from now on or from when `run` is called.

        Raises:
            ApiError: the API server refused, or did not answer; the kind is not followed.
        """
        await self.catch_up(resource)
        if resource in self._followed:
            return
        self._followed.append(resource)
        self._spawn(resource)

    async def catch_up(self, resource: Resource) -> None:
        """List the objects of a kind, and wake the jobs for which that was news.

        Raises:
            ApiError: the API server refused, or did not answer.
        """
        known_before = self._store.uids(resource.kind)
        unlisted, changed = set(known_before), set[JobKey]()
        for namespace in self._namespaces:
            async for page in self._cluster.list_pages(resource, namespace, _selector(resource)):
                changed |= self._store.see_listed(page.objects, known_before)
                unlisted -= {body["metadata"]["uid"] for body in page.objects}
                self._versions[resource, namespace] = page.version
        changed |= self._store.forget_unlisted(resource.kind, unlisted)
        for key in changed:
            self._wake(key)

    async def run(self) -> None:
        """Hear of changes until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._group:
                for resource in self._followed:
                    self._spawn(resource)
                await asyncio.Event().wait()
        finally:
            self._group = None

    def _spawn(self, resource: Resource) -> None:
        if self._group is not None:
            for namespace in self._namespaces:
                self._group.create_task(self._hear(resource, namespace))

    async def _hear(self, resource: Resource, namespace: str | None) -> None:
        """Hear of changes for ever; what an interruption has hidden comes after it."""
        version: str | None = self._versions[resource, namespace]
        failures = 0
        while True:
            try:
                if version is None:
                    await self.catch_up(resource)
                    version = self._versions[resource, namespace]
                async for kind, body in self._cluster.watch(resource, namespace, _selector(resource), version):
                    version, failures = body["metadata"]["resourceVersion"], 0
                    self._see(kind, body)
                await asyncio.sleep(_PAUSE_SECONDS)
            except ApiError as error:
                if error.status == _GONE:  # it answers: a new list is all that is needed, however long it was away
                    version, failures = None, 0
                failures += 1
                delay_seconds = _BACKOFF.delay_seconds(failures)
                logger.warning("%s", error, extra={"retry_after_seconds": delay_seconds})
                await asyncio.sleep(delay_seconds)

    def _see(self, kind: str, body: Body) -> None:
        if kind == "BOOKMARK":
            return
        if kind == "DELETED":
            gone = self._store.forget(body)
            if gone is not None:
                self._wake(gone)
            return
        # Most of what is heard is what we have just made, or what controllers note for themselves.
        change = self._store.update(body)
        if change is None:
            return
        match weigh(body, change.before, self._store.children(change.key)):
            case Weight.AT_ONCE:
                self._wake(change.key)
            case Weight.CAN_WAIT:
                self._wake_in_a_moment(change.key)
            case Weight.NOTHING_FOLLOWS:
                pass


def _selector(resource: Resource) -> str:
    return "" if resource is FINE_TUNE_JOBS else names.CHILD_SELECTOR
