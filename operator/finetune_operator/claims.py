"""Claims that jobs use and somebody else has made: no watch tells of them, because they carry no label of ours.

A thousand jobs on one shared filesystem name one claim. What one of them has found holds for the others for a moment,
so that a burst of jobs, or a restart among many, does not ask for the same claim a thousand times.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from finetune_operator.causes import is_pending_claim
from finetune_operator.store import Body, JobKey

_HOLDS_FOR = timedelta(seconds=1)


class Claims:
    """Finds claims by name, and remembers for a moment those that are bound."""

    def __init__(self, find: Callable[[JobKey, str], Awaitable[Body | None]], clock: Callable[[], datetime]) -> None:
        """Know no claim.

        Args:
            find: asks the API server for a claim of a job's namespace.
            clock: the time.
        """
        self._find = find
        self._clock = clock
        self._found: dict[tuple[str, str], tuple[datetime, Body]] = {}

    async def find(self, key: JobKey, name: str) -> Body | None:
        """Ask for a claim, and return it or None when it is not there."""
        claim = await self._find(key, name)
        if claim is not None and not is_pending_claim(claim):
            self._found[key.namespace, name] = (self._clock(), claim)
        else:
            self._found.pop((key.namespace, name), None)
        return claim

    async def find_first(self, key: JobKey, name: str) -> Body | None:
        """Return a claim that this job has not seen yet; another job may just have found it."""
        asked_at, claim = self._found.get((key.namespace, name), (None, None))
        if asked_at is not None and self._clock() - asked_at < _HOLDS_FOR:
            return claim
        return await self.find(key, name)
