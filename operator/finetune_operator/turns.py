"""Turns: so many things a second and no more, each at a time that it is told.

Pure, the time is an argument.
"""

from collections.abc import Hashable
from datetime import datetime, timedelta
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Turns(Generic[Key]):
    """Gives each key a turn of its own; after a quiet time several may have theirs at once."""

    def __init__(self, per_second: float, at_once: int) -> None:
        """Give out no turn yet.

        Args:
            per_second: how many turns there are.
            at_once: how many turns that nobody took are still there to be taken.
        """
        self._step = timedelta(seconds=1 / per_second)
        self._unused = self._step * at_once
        self._next: datetime | None = None
        self._given: dict[Key, datetime] = {}

    def take(self, key: Key, now: datetime) -> bool:
        """Return whether it is the turn of a key, which is over with this; else it has one that comes."""
        if self.reserve(key, now) > now:
            return False
        del self._given[key]
        return True

    def reserve(self, key: Key, not_before: datetime) -> datetime:
        """Return when the turn of a key is, which stays its own until it is taken or forgotten."""
        if key not in self._given:
            earliest = not_before - self._unused
            turn = earliest if self._next is None else max(self._next, earliest)
            self._given[key], self._next = max(turn, not_before), turn + self._step
        return self._given[key]

    def seconds_until(self, key: Key, now: datetime) -> float | None:
        """Return when the turn of a key comes; None when it waits for none."""
        turn = self._given.get(key)
        return None if turn is None else max(0.0, (turn - now).total_seconds())

    def forget(self, key: Key) -> None:
        """Take no turn for a key."""
        self._given.pop(key, None)
