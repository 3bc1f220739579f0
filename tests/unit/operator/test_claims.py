"""A claim that many jobs name is asked for once a moment for all of them."""

from datetime import UTC, datetime, timedelta

from finetune_operator.claims import Claims
from finetune_operator.store import Body, JobKey
from tests.unit.operator import kubernetes_objects as objects

CALLS, OTHER, ELSEWHERE = JobKey("team-a", "calls"), JobKey("team-a", "other"), JobKey("team-b", "calls")
START = datetime(2026, 11, 28, 5, 0, tzinfo=UTC)


class Asked:
    """Claims of a cluster in which one is there, who asked for it, and the time."""

    def __init__(self, claim: Body | None) -> None:
        self.claim = claim
        self.now = START
        self.by: list[JobKey] = []
        self.claims = Claims(self.find, lambda: self.now)

    async def find(self, key: JobKey, name: str) -> Body | None:
        self.by.append(key)
        return self.claim


async def test_what_one_job_has_found_holds_for_another_for_a_moment() -> None:
    asked = Asked(objects.claim("data"))
    assert await asked.claims.find_first(CALLS, "data") == asked.claim
    assert await asked.claims.find_first(OTHER, "data") == asked.claim
    assert asked.by == [CALLS]
    asked.now += timedelta(seconds=1)
    await asked.claims.find_first(OTHER, "data")
    assert asked.by == [CALLS, OTHER]


async def test_claims_of_two_namespaces_are_two_claims() -> None:
    asked = Asked(objects.claim("data"))
    await asked.claims.find_first(CALLS, "data")
    await asked.claims.find_first(ELSEWHERE, "data")
    assert asked.by == [CALLS, ELSEWHERE]


async def test_a_claim_that_is_missing_or_not_bound_is_asked_for_by_each_job() -> None:
    for claim in (None, objects.claim("data", phase="Pending")):
        asked = Asked(claim)
        await asked.claims.find_first(CALLS, "data")
        await asked.claims.find_first(OTHER, "data")
        assert asked.by == [CALLS, OTHER]


async def test_a_job_that_has_seen_a_claim_asks_anew_and_tells_the_others_that_it_is_gone() -> None:
    asked = Asked(objects.claim("data"))
    await asked.claims.find_first(CALLS, "data")
    asked.claim = None
    assert await asked.claims.find(CALLS, "data") is None
    assert await asked.claims.find_first(OTHER, "data") is None
