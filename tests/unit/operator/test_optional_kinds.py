"""Kinds that a cluster may lack are looked for when somebody needs them, and watched once they are there."""

import asyncio

import pytest

from finetune_operator.errors import ApiError, DefinitionMissing
from finetune_operator.optional_kinds import OptionalKinds
from finetune_operator.resources import PYTORCH_JOBS, Resource


class SomeCluster:
    """A cluster that has the kind or lacks it, and what is asked of it and done with it, in order."""

    def __init__(self, *, installed: bool) -> None:
        self.installed = installed
        self.refusal: ApiError | None = None
        self.done: list[str] = []
        self.now = 0.0
        self.kinds = OptionalKinds(self.serves, self.watch, lambda: self.now)

    async def serves(self, resource: Resource) -> bool:
        self.done.append(f"ask for {resource.plural}")
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        return self.installed

    async def watch(self, resource: Resource) -> None:
        self.done.append(f"watch {resource.plural}")


ASK, WATCH = "ask for pytorchjobs", "watch pytorchjobs"


async def test_a_kind_that_every_cluster_has_is_not_asked_for() -> None:
    cluster = SomeCluster(installed=False)
    assert await cluster.kinds.has("Job")
    assert cluster.done == []


async def test_a_kind_that_is_there_is_watched_once_however_many_ask() -> None:
    cluster = SomeCluster(installed=True)
    assert await asyncio.gather(*(cluster.kinds.has("PyTorchJob") for _ in range(3))) == [True, True, True]
    assert cluster.done == [ASK, WATCH]
    assert cluster.kinds.watched == (PYTORCH_JOBS,)


async def test_a_thousand_jobs_that_wait_for_a_kind_ask_for_it_every_three_seconds() -> None:
    cluster = SomeCluster(installed=False)
    for cluster.now in (0.0, 1.0, 2.0, 3.0, 4.0):
        assert not any(await asyncio.gather(*(cluster.kinds.has("PyTorchJob") for _ in range(1000))))
    assert cluster.done == [ASK, ASK]


async def test_a_kind_that_is_installed_later_is_watched_from_then_on() -> None:
    cluster = SomeCluster(installed=False)
    assert not await cluster.kinds.has("PyTorchJob")
    cluster.installed, cluster.now = True, 5.0
    assert await cluster.kinds.has("PyTorchJob")
    assert cluster.done == [ASK, ASK, WATCH]


async def test_a_kind_that_the_operator_may_not_see_is_told_of_only_to_jobs_that_need_it() -> None:
    cluster = SomeCluster(installed=True)
    cluster.refusal = ApiError("list pytorchjobs is not permitted", 403)
    await cluster.kinds.look_for_all()
    assert cluster.kinds.watched == ()
    cluster.now = 5.0
    with pytest.raises(ApiError, match="not permitted"):
        await cluster.kinds.has("PyTorchJob")


async def test_an_api_server_that_does_not_answer_is_no_missing_kind() -> None:
    cluster = SomeCluster(installed=True)
    cluster.refusal = ApiError("the API server did not answer")
    with pytest.raises(ApiError, match="did not answer"):
        await cluster.kinds.look_for_all()


async def test_a_kind_that_goes_away_is_noticed_because_its_watch_went_with_it() -> None:
    cluster = SomeCluster(installed=True)
    await cluster.kinds.check()
    assert cluster.done == []
    await cluster.kinds.has("PyTorchJob")
    await cluster.kinds.check()
    cluster.installed = False
    with pytest.raises(DefinitionMissing, match="PyTorchJobs"):
        await cluster.kinds.check()
