"""A work queue by key, which knows neither kopf nor Kubernetes.

A key that is added twice before its turn is worked once. A key is never worked twice at the same time: added while
it is being worked, it comes back afterwards. A key whose work failed comes back after a delay that doubles with each
failure in a row. The work says itself when it wants to be woken next.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Backoff:
    """Delays between the retries of a failing key."""

    first_seconds: float = 0.5
    longest_seconds: float = 30.0

    def delay_seconds(self, failures: int) -> float:
        """Return the delay after this many failures in a row (at least 1)."""
        # NB: the exponent is bounded because a float overflows at 2 ** 1024.
        return float(min(self.first_seconds * 2 ** min(failures - 1, 32), self.longest_seconds))


class WorkQueue(Generic[Key]):
    """Works keys with a bounded number of workers.

    `work` is awaited with a key and returns after how many seconds the key is to be woken, or None to sleep until it
    is added again. `on_failure` is told the key, the error and the delay until its retry.
    """

    def __init__(
        self,
        work: Callable[[Key], Awaitable[float | None]],
        on_failure: Callable[[Key, Exception, float], None],
        *,
        num_workers: int,
        backoff: Backoff = Backoff(),
    ) -> None:
        self._work = work
        self._on_failure = on_failure
        self._num_workers = num_workers
        self._backoff = backoff
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()  # in _ready, or worked and wanted again
        self._working: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        """Return how many keys wait for their turn."""
        return len(self._waiting)

    @property
    def num_working(self) -> int:
        """How many keys are being worked now."""
        return len(self._working)

    def add(self, key: Key) -> None:
        """Have `key` worked as soon as a worker is free; does nothing if it waits for its turn already."""
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._working:
            self._ready.put_nowait(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Have `key` worked in so many seconds; of two wakes of a key the earlier counts."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + seconds:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self._wake, key)

    async def run(self) -> None:
        """Work keys until cancelled; a key that is being worked is cancelled with it, and no timer is left."""
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._num_workers):
                    workers.create_task(self._run_worker())
        finally:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    async def _run_worker(self) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            self._working.add(key)
            # What the timer would have looked at is looked at now; the work sets the next one.
            if timer := self._timers.pop(key, None):
                timer.cancel()
            try:
                await self._work_once(key)
            finally:
                self._working.discard(key)
                if key in self._waiting:
                    self._ready.put_nowait(key)
            # NB: work that waits for nothing, as after a restart among many jobs, would let nobody else have a turn:
            # no probe would be answered until the queue is empty.
            await asyncio.sleep(0)

    async def _work_once(self, key: Key) -> None:
        try:
            wake_after_seconds = await self._work(key)
        except Exception as error:  # noqa: BLE001 - one key's failure must not stop the others; it is reported
            self._failures[key] = self._failures.get(key, 0) + 1
            delay_seconds = self._backoff.delay_seconds(self._failures[key])
            self.add_after(key, delay_seconds)
            self._on_failure(key, error, delay_seconds)
        else:
            self._failures.pop(key, None)
            if wake_after_seconds is not None:
                self.add_after(key, wake_after_seconds)

    def _wake(self, key: Key) -> None:
        del self._timers[key]
        self.add(key)
