"""The warnings of a namespace, asked for once for all jobs that want to know why something waits.

Events lie in etcd alone: to tell those about one object the API server reads all of the namespace, and its fairness
counts that as many requests at once. Among a thousand jobs that start it held up all else that the operator asked for.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_operator.store import Body, ObjectKey

_HOLDS_FOR = timedelta(seconds=2)
# The longer the API server takes for a list, the longer it is left alone: a twentieth of the time goes into lists.
_RESTS = 20
_READ = ("reason", "message", "lastTimestamp", "eventTime")

WarningsByObject = Mapping[ObjectKey, Sequence[Body]]


@dataclass(frozen=True)
class _Listed:
    by_object: WarningsByObject
    holds_until: datetime


class Warnings:
    """Lists the warnings of a namespace, and remembers them for a while."""

    def __init__(
        self, list_warnings: Callable[[str], Awaitable[Sequence[Body]]], clock: Callable[[], datetime]
    ) -> None:
        """Know no warning.

        Args:
            list_warnings: asks for the Events of type Warning of a namespace.
            clock: the time.
        """
        self._list = list_warnings
        self._clock = clock
        self._listed: dict[str, _Listed] = {}
        self._asking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def about(self, namespace: str, objects: Iterable[ObjectKey]) -> WarningsByObject:
        """Return what was told of some objects of a namespace; nothing is asked for when there are none of them."""
        wanted = tuple(objects)
        if not wanted:
            return {}
        known = self._listed.get(namespace)
        # While somebody asks, what was known before does for the others.
        if known is None or (self._clock() >= known.holds_until and not self._asking[namespace].locked()):
            known = await self._ask(namespace)
        return {key: known.by_object.get(key, ()) for key in wanted}

    async def _ask(self, namespace: str) -> _Listed:
        async with self._asking[namespace]:
            known = self._listed.get(namespace)
            begun = self._clock()
            if known is not None and begun < known.holds_until:
                return known  # somebody else has asked meanwhile
            by_object: defaultdict[ObjectKey, list[Body]] = defaultdict(list)
            for event in await self._list(namespace):
                about = event["involvedObject"]
                kept = {name: event[name] for name in _READ if name in event}
                by_object[ObjectKey(about.get("kind", ""), about.get("name", ""))].append(kept)
            ended = self._clock()
            known = _Listed(dict(by_object), ended + max(_HOLDS_FOR, _RESTS * (ended - begun)))
            self._listed[namespace] = known
            return known
