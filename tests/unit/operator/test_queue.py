"""What the work queue promises to those who put keys into it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from finetune_operator.queue import Backoff, WorkQueue
from tests.unit.operator.virtual_clock import run_virtually

Work = Callable[[str], Awaitable[float | None]]


@dataclass
class Diary:
    """When each key was worked, and when each failure was told."""

    worked: list[tuple[float, str]] = field(default_factory=list)
    failures: list[tuple[str, str, float]] = field(default_factory=list)

    def work(self, answer: Callable[[str, int], float | None] = lambda key, turn: None, seconds: float = 0.0) -> Work:
        """Work that takes so long, and answers by the key and by how often it was worked."""

        async def work(key: str) -> float | None:
            self.worked.append((asyncio.get_running_loop().time(), key))
            await asyncio.sleep(seconds)
            return answer(key, sum(worked == key for _, worked in self.worked))

        return work

    def tell(self, key: str, error: Exception, delay_seconds: float) -> None:
        self.failures.append((key, str(error), delay_seconds))


@asynccontextmanager
async def running(diary: Diary, work: Work, num_workers: int = 2, **options: Any) -> Any:
    queue = WorkQueue(work, diary.tell, num_workers=num_workers, **options)
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_key_added_many_times_before_its_turn_is_worked_once() -> None:
    async def story() -> Diary:
        diary = Diary()
        async with running(diary, diary.work()) as queue:
            for _ in range(5):
                queue.add("a")
            assert len(queue) == 1
            await asyncio.sleep(1)
        return diary

    assert run_virtually(story()).worked == [(0, "a")]


def test_a_key_added_while_it_is_worked_is_worked_again_afterwards_and_never_beside_itself() -> None:
    async def story() -> Diary:
        diary = Diary()
        async with running(diary, diary.work(seconds=10)) as queue:
            queue.add("a")
            await asyncio.sleep(1)
            queue.add("a")
            queue.add("a")
            await asyncio.sleep(60)
        return diary

    assert run_virtually(story()).worked == [(0, "a"), (10, "a")]


def test_as_many_keys_are_worked_at_once_as_there_are_workers() -> None:
    async def story() -> Diary:
        diary = Diary()
        async with running(diary, diary.work(seconds=10), num_workers=2) as queue:
            for key in "abc":
                queue.add(key)
            await asyncio.sleep(5)
            assert (queue.num_working, len(queue)) == (2, 1)
            await asyncio.sleep(60)
        return diary

    assert run_virtually(story()).worked == [(0, "a"), (0, "b"), (10, "c")]


def test_the_work_says_when_it_wants_to_be_woken() -> None:
    async def story() -> Diary:
        diary = Diary()
        async with running(diary, diary.work(lambda key, turn: 10.0 if turn < 3 else None)) as queue:
            queue.add("a")
            await asyncio.sleep(100)
        return diary

    assert run_virtually(story()).worked == [(0, "a"), (10, "a"), (20, "a")]


def test_an_earlier_wake_replaces_a_later_one_and_a_later_one_is_passed_over() -> None:
    async def story() -> Diary:
        diary = Diary()
        async with running(diary, diary.work()) as queue:
            queue.add_after("a", 30)
            queue.add_after("a", 5)
            queue.add_after("a", 20)
            await asyncio.sleep(100)
        return diary

    assert run_virtually(story()).worked == [(5, "a")]


def test_a_key_that_is_worked_for_another_reason_loses_its_old_wake() -> None:
    async def story() -> Diary:
        diary = Diary()
        async with running(diary, diary.work()) as queue:
            queue.add_after("a", 30)
            queue.add("a")
            await asyncio.sleep(100)
        return diary

    assert run_virtually(story()).worked == [(0, "a")]


def test_a_failing_key_comes_back_after_a_delay_that_doubles_up_to_a_limit() -> None:
    def fail(key: str, turn: int) -> float | None:
        raise RuntimeError("no answer")

    async def story() -> Diary:
        diary = Diary()
        async with running(diary, diary.work(fail), backoff=Backoff(first_seconds=1, longest_seconds=8)) as queue:
            queue.add("a")
            await asyncio.sleep(30)
        return diary

    diary = run_virtually(story())
    assert [at for at, _ in diary.worked] == [0, 1, 3, 7, 15, 23]
    assert diary.failures[:2] == [("a", "no answer", 1), ("a", "no answer", 2)]


def test_a_success_forgets_the_failures_before_it() -> None:
    def fail_but_for_the_third_time(key: str, turn: int) -> float | None:
        if turn == 3:
            return 100.0
        raise RuntimeError("no answer")

    async def story() -> Diary:
        diary = Diary()
        async with running(diary, diary.work(fail_but_for_the_third_time), backoff=Backoff(first_seconds=1)) as queue:
            queue.add("a")
            await asyncio.sleep(103.5)
        return diary

    assert [delay for _, _, delay in run_virtually(story()).failures] == [1, 2, 1]


def test_a_failing_key_does_not_hold_up_the_others() -> None:
    def fail_a(key: str, turn: int) -> float | None:
        if key == "a":
            raise RuntimeError("no answer")
        return None

    async def story() -> Diary:
        diary = Diary()
        async with running(diary, diary.work(fail_a), num_workers=1) as queue:
            queue.add("a")
            queue.add("b")
            await asyncio.sleep(0.1)
        return diary

    assert run_virtually(story()).worked == [(0, "a"), (0, "b")]


def test_stopping_ends_the_work_in_hand_and_leaves_no_timer() -> None:
    async def story() -> None:
        diary = Diary()
        queue = WorkQueue(diary.work(seconds=1000), diary.tell, num_workers=1)
        task = asyncio.create_task(queue.run())
        queue.add("a")
        queue.add_after("b", 50)
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert asyncio.get_running_loop().time() == pytest.approx(1)
        await asyncio.sleep(100)
        assert diary.worked == [(0, "a")]
        assert queue.num_working == 0

    run_virtually(story())


def test_the_delay_stays_finite_after_any_number_of_failures() -> None:
    assert Backoff(first_seconds=0.5, longest_seconds=120).delay_seconds(10_000) == 120


async def test_work_that_waits_for_nothing_leaves_others_their_turn() -> None:
    worked: list[str] = []

    async def work(key: str) -> None:
        worked.append(key)

    async with running(Diary(), work) as queue:
        for number in range(1000):
            queue.add(f"job-{number}")
        for _ in range(10):
            await asyncio.sleep(0)
        assert 2 <= len(worked) <= 30
