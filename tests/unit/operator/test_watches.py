"""What the operator hears of the children: a list, then every change, and a new list when a change may be missing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from finetune_operator import watches
from finetune_operator.cluster import Page
from finetune_operator.errors import ApiError
from finetune_operator.queue import Backoff
from finetune_operator.resources import JOBS, Resource
from finetune_operator.store import Body, JobKey, ObjectKey, Store
from finetune_operator.watches import Watches

CALLS = JobKey("team-a", "calls")
PREPARE = ObjectKey("Job", "calls-prepare")

Event = tuple[str, Body]


def job(version: int, uid: str = "uid-1") -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "calls-prepare",
            "namespace": "team-a",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {"finetune.dev/job": "calls"},
        },
        "status": {"conditions": [{"type": f"Told{version}", "status": "True"}]},
    }


class SomeCluster:
    """Answers lists and watches in order and remembers from which version each watch was asked for."""

    def __init__(self, lists: list[list[Page]], streams: list[list[Event | ApiError]]) -> None:
        self.lists = lists
        self.streams = streams
        self.watched_since: list[str] = []

    async def list_pages(self, resource: Resource, namespace: str | None, label_selector: str) -> AsyncIterator[Page]:
        for page in self.lists.pop(0):
            yield page

    async def watch(
        self, resource: Resource, namespace: str | None, label_selector: str, since: str
    ) -> AsyncIterator[Event]:
        self.watched_since.append(since)
        for event in self.streams.pop(0) if self.streams else []:
            if isinstance(event, ApiError):
                raise event
            yield event
        if not self.streams:
            await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(watches, "_BACKOFF", Backoff(0, 0))


async def following(cluster: SomeCluster, until: Callable[[Store], bool]) -> tuple[Store, list[JobKey]]:
    """Follow Jobs until the store looks as expected; return the store, and which jobs were woken."""
    store, woken = Store(), list[JobKey]()
    followed = Watches(cluster, store, (None,), woken.append, woken.append)  # type: ignore[arg-type]
    await followed.follow(JOBS)
    task = asyncio.create_task(followed.run())
    await _until(lambda: until(store), task)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return store, woken


async def _until(condition: Callable[[], bool], running: Awaitable[None]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            assert not asyncio.ensure_future(running).done()
            await asyncio.sleep(0)


def version_of(store: Store) -> str | None:
    found = store.find(CALLS, PREPARE)
    return None if found is None else found["metadata"]["resourceVersion"]


async def test_what_changes_after_the_list_is_heard_of_and_wakes_its_job() -> None:
    cluster = SomeCluster([[Page([job(3)], "7")]], [[("MODIFIED", job(8))]])
    _, woken = await following(cluster, lambda store: version_of(store) == "8")
    assert cluster.watched_since == ["7"]
    assert woken == [CALLS, CALLS]


async def test_a_list_of_many_pages_is_kept_whole_and_loses_nothing_that_was_known() -> None:
    forgotten = ApiError("watch jobs: too old resource version", 410)
    train = {**job(4, "uid-2"), "metadata": {**job(4, "uid-2")["metadata"], "name": "calls-a1-node"}}
    first, second = Page([job(3)], "7"), Page([train], "7")
    cluster = SomeCluster([[first, second], [first, second]], [[forgotten], [("MODIFIED", job(8))]])
    store, woken = await following(cluster, lambda store: version_of(store) == "8")
    assert {child["metadata"]["name"] for child in store.children(CALLS)} == {"calls-prepare", "calls-a1-node"}
    assert cluster.watched_since == ["7", "7"]
    assert woken == [CALLS, CALLS]


async def test_a_watch_that_ends_goes_on_where_it_stopped() -> None:
    bookmark = {"kind": "Job", "metadata": {"resourceVersion": "20"}}
    cluster = SomeCluster(
        [[Page([job(3)], "7")]], [[("MODIFIED", job(8)), ("BOOKMARK", bookmark)], [("MODIFIED", job(21))]]
    )
    await following(cluster, lambda store: version_of(store) == "21")
    assert cluster.watched_since == ["7", "20"]


async def test_an_api_server_that_does_not_answer_is_asked_again_from_the_same_version() -> None:
    silence = ApiError("watch jobs: the API server did not answer")
    cluster = SomeCluster([[Page([], "7")]], [[silence], [silence], [("ADDED", job(9))]])
    await following(cluster, lambda store: version_of(store) == "9")
    assert cluster.watched_since == ["7", "7", "7"]


async def test_what_was_deleted_while_the_api_server_forgot_is_found_missing_by_a_new_list() -> None:
    forgotten = ApiError("watch jobs: too old resource version", 410)
    cluster = SomeCluster([[Page([job(3)], "7")], [Page([], "90")]], [[forgotten], []])
    _, woken = await following(cluster, lambda store: version_of(store) is None)
    await asyncio.sleep(0)
    assert woken == [CALLS, CALLS]
    assert cluster.watched_since[0] == "7"
    assert cluster.lists == []


async def test_what_changed_while_the_api_server_forgot_is_read_from_a_new_list_and_wakes_its_job() -> None:
    forgotten = ApiError("watch jobs: too old resource version", 410)
    cluster = SomeCluster([[Page([job(3)], "7")], [Page([job(80)], "90")]], [[forgotten], []])
    _, woken = await following(cluster, lambda store: version_of(store) == "80")
    assert woken == [CALLS, CALLS]


async def test_what_the_operator_has_just_written_wakes_nobody_when_it_comes_back() -> None:
    cluster = SomeCluster([[Page([], "7")]], [[("ADDED", job(8)), ("MODIFIED", job(9))]])
    store, woken = Store(), list[JobKey]()
    followed = Watches(cluster, store, (None,), woken.append, woken.append)  # type: ignore[arg-type]
    await followed.follow(JOBS)
    store.see(job(8))
    task = asyncio.create_task(followed.run())
    await _until(lambda: version_of(store) == "9", task)
    assert woken == [CALLS]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_a_controller_notes_for_itself_wakes_nobody() -> None:
    noted = job(8) | {"metadata": job(9)["metadata"] | {"finalizers": ["batch.kubernetes.io/job-tracking"]}}
    noted["status"] = noted["status"] | {"active": 2, "uncountedTerminatedPods": {}}
    cluster = SomeCluster([[Page([job(8)], "7")]], [[("MODIFIED", noted), ("MODIFIED", job(10))]])
    _, woken = await following(cluster, lambda store: version_of(store) == "10")
    assert woken == [CALLS, CALLS]


async def test_news_that_nothing_follows_from_wakes_its_job_in_a_moment_and_its_deletion_at_once() -> None:
    begun = job(8) | {"status": {"startTime": "2026-11-23T05:00:00Z"}}
    cluster = SomeCluster(
        [[Page([], "7")]], [[("ADDED", begun), ("DELETED", begun | {"metadata": job(9)["metadata"]})]]
    )
    store, woken = Store(), list[str]()
    followed = Watches(
        cluster,  # type: ignore[arg-type]
        store,
        (None,),
        lambda key: woken.append(f"{key.name} now"),
        lambda key: woken.append(f"{key.name} in a moment"),
    )
    await followed.follow(JOBS)
    task = asyncio.create_task(followed.run())
    await _until(lambda: len(woken) == 2, task)
    assert woken == ["calls in a moment", "calls now"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_deleted_object_is_forgotten() -> None:
    cluster = SomeCluster([[Page([job(3)], "7")]], [[("DELETED", job(8))]])
    store, _ = await following(cluster, lambda store: version_of(store) is None)
    assert store.children(CALLS) == ()


async def test_a_kind_that_is_followed_later_is_heard_of_at_once() -> None:
    cluster = SomeCluster([[Page([], "7")]], [[("ADDED", job(8))]])
    store = Store()
    followed = Watches(cluster, store, (None,), lambda _: None, lambda _: None)  # type: ignore[arg-type]
    task = asyncio.create_task(followed.run())
    await asyncio.sleep(0)
    await followed.follow(JOBS)
    await _until(lambda: version_of(store) == "8", task)
    assert followed.followed == (JOBS,)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
