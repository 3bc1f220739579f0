"""The warnings of a namespace are listed once for all jobs, and the more rarely the longer the API server takes."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator.store import ObjectKey
from finetune_operator.warning_events import Warnings

START = datetime(2026, 11, 28, 5, 0, tzinfo=UTC)
CALLS, OTHER = ObjectKey("Job", "calls-prepare"), ObjectKey("Pod", "other-a1-node-0-x")
REFUSED = {"reason": "FailedCreate", "message": "exceeded quota", "lastTimestamp": "2026-11-28T04:59:00Z"}


def event(about: ObjectKey, **fields: Any) -> dict[str, Any]:
    return {"kind": "Event", "metadata": {"name": "x"}, "involvedObject": about._asdict(), **fields}


class Cluster:
    """Lists warnings, each list taking so long."""

    def __init__(self, *events: dict[str, Any], takes_seconds: float = 0) -> None:
        self.events = list(events)
        self.takes_seconds = takes_seconds
        self.now = START
        self.lists: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.warnings = Warnings(self.list_warnings, lambda: self.now)

    async def list_warnings(self, namespace: str) -> list[dict[str, Any]]:
        self.lists.append(namespace)
        await self.answers.wait()
        self.advance(self.takes_seconds)
        return list(self.events)

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


async def test_each_object_has_the_warnings_about_it_and_no_others() -> None:
    cluster = Cluster(event(CALLS, **REFUSED))
    assert await cluster.warnings.about("team-a", [CALLS, OTHER]) == {CALLS: [REFUSED], OTHER: ()}


async def test_who_wants_to_know_of_nothing_asks_nothing() -> None:
    cluster = Cluster()
    assert await cluster.warnings.about("team-a", []) == {}
    assert cluster.lists == []


async def test_what_was_listed_holds_for_all_jobs_of_a_namespace_for_two_seconds() -> None:
    cluster = Cluster()
    for about in (CALLS, OTHER):
        await cluster.warnings.about("team-a", [about])
    await cluster.warnings.about("team-b", [CALLS])
    assert cluster.lists == ["team-a", "team-b"]
    cluster.events.append(event(CALLS, **REFUSED))
    cluster.advance(2)
    assert await cluster.warnings.about("team-a", [CALLS]) == {CALLS: [REFUSED]}


async def test_an_api_server_that_takes_long_for_a_list_is_left_alone_for_longer() -> None:
    cluster = Cluster(takes_seconds=3)
    await cluster.warnings.about("team-a", [CALLS])
    cluster.advance(59)
    await cluster.warnings.about("team-a", [CALLS])
    assert len(cluster.lists) == 1
    cluster.advance(1)
    await cluster.warnings.about("team-a", [CALLS])
    assert len(cluster.lists) == 2


async def test_many_that_ask_at_once_share_one_list() -> None:
    cluster = Cluster(event(CALLS, **REFUSED))
    cluster.answers.clear()
    asking = [asyncio.create_task(cluster.warnings.about("team-a", [CALLS])) for _ in range(16)]
    await asyncio.sleep(0)
    cluster.answers.set()
    assert await asyncio.gather(*asking) == [{CALLS: [REFUSED]}] * 16
    assert len(cluster.lists) == 1


async def test_while_one_asks_anew_the_others_go_on_with_what_was_known() -> None:
    cluster = Cluster(event(CALLS, **REFUSED))
    await cluster.warnings.about("team-a", [CALLS])
    cluster.advance(2)
    cluster.answers.clear()
    asking = asyncio.create_task(cluster.warnings.about("team-a", [CALLS]))
    await asyncio.sleep(0)
    assert await cluster.warnings.about("team-a", [CALLS]) == {CALLS: [REFUSED]}
    cluster.answers.set()
    await asking
    assert len(cluster.lists) == 2
