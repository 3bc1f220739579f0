"""The kinds of objects that a cluster may lack: each is watched from the moment that it is there and needed.

Looked for when the operator starts, and whenever a job needs one, so that a cluster without them costs nothing.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from finetune_operator.errors import ApiError, DefinitionMissing
from finetune_operator.resources import OPTIONAL_CHILDREN, Resource

logger = logging.getLogger(__name__)

# Many jobs may wait for the same kind.
_LOOK_AGAIN_SECONDS = 3.0


class OptionalKinds:
    """Which of them the cluster has."""

    def __init__(
        self,
        serves: Callable[[Resource], Awaitable[bool]],
        watch: Callable[[Resource], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        """Know of none yet.

        Args:
            serves: asks the cluster whether it knows a kind.
            watch: lists the objects of a kind and from then on watches them.
            clock: the time in seconds, from any start.
        """
        self._serves = serves
        self._watch = watch
        self._clock = clock
        self._watched: list[Resource] = []
        self._looked_at: dict[Resource, float] = {}
        self._looking = asyncio.Lock()

    @property
    def watched(self) -> tuple[Resource, ...]:
        """Those that the cluster has."""
        return tuple(self._watched)

    async def has(self, kind: str) -> bool:
        """Return whether the cluster has a kind, and from then on watch it.

        Raises:
            ApiError: the API server refused to tell, or did not answer.
        """
        resource = next((resource for resource in OPTIONAL_CHILDREN if resource.kind == kind), None)
        return resource is None or await self._look_for(resource)

    async def look_for_all(self) -> None:
        """Look for each of them; one that the operator may not see counts as missing.

        Raises:
            ApiError: the API server did not answer.
        """
        for resource in OPTIONAL_CHILDREN:
            try:
                await self._look_for(resource)
            except ApiError as error:
                if not error.is_refusal:
                    raise
                logger.info("%s", error)  # a job that needs it is told

    async def check(self) -> None:
        """Do nothing as long as the cluster has every kind that is watched.

        Raises:
            DefinitionMissing: one of them is gone, and with it its watch.
            ApiError: the API server refused to tell, or did not answer.
        """
        for resource in self._watched:
            if not await self._serves(resource):
                raise DefinitionMissing(f"The cluster does not know {resource.kind}s.")

    async def _look_for(self, resource: Resource) -> bool:
        async with self._looking:
            if resource in self._watched:
                return True
            now = self._clock()
            if now < self._looked_at.get(resource, -math.inf) + _LOOK_AGAIN_SECONDS:
                return False
            self._looked_at[resource] = now
            if not await self._serves(resource):
                return False
            await self._watch(resource)
            self._watched.append(resource)
        logger.info("The cluster knows %ss", resource.kind)
        return True
