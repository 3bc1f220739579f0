"""What became of the GPUs' time, in hand-made histories of a job; sums are literal."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.accounting import accounted, gpu_seconds, growth_between
from finetune_operator.api.status import Activity, Attempt, Checkpoint, FineTuneJobStatus, Phase

START = datetime(2026, 11, 23, 5, 0, tzinfo=UTC)
NUM_GPUS = 16
TRAINED = (Phase.EVALUATING, Phase.SUCCEEDED)
PREPARING = FineTuneJobStatus(phase=Phase.PREPARING)


@dataclass(frozen=True)
class Told:
    """What is told so many seconds after the start."""

    at: float
    phase: Phase
    attempt: int = 1
    resumed_from: int | None = None
    checkpoint: tuple[int, float] | None = None
    """Step, and seconds after the start."""


def moment(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def play(*story: Told) -> FineTuneJobStatus:
    status = PREPARING
    for told in story:
        attempts = tuple(
            Attempt(number=number, started="2026-11-23T05:00:00Z", resumed_from_step=told.resumed_from)
            for number in range(1, told.attempt + 1)
        )
        if told.phase in TRAINED:
            attempts = (*attempts[:-1], attempts[-1].model_copy(update={"reason": "Succeeded"}))
        after = status.model_copy(update={"phase": told.phase, "attempts": attempts})
        if told.checkpoint is not None:
            step, seconds = told.checkpoint
            checkpoint = Checkpoint(step=step, time=moment(seconds).isoformat())
            after = after.model_copy(update={"checkpoint": checkpoint})
        status = accounted(status, after, moment(told.at), NUM_GPUS)
    return status


# (story, GPU-seconds queued, starting, productive, lost), of 16 GPUs
HISTORIES: dict[str, tuple[list[Told], tuple[int, int, int, int]]] = {
    "nothing goes wrong": (
        [
            Told(0, Phase.STARTING),
            Told(30, Phase.RUNNING),
            Told(50, Phase.RUNNING, resumed_from=0),
            Told(200, Phase.RUNNING, resumed_from=0, checkpoint=(100, 190)),
            Told(350, Phase.SUCCEEDED, resumed_from=0, checkpoint=(200, 349)),
        ],
        (30 * 16, 20 * 16, 300 * 16, 0),
    ),
    "the trained model is evaluated, when the gang's GPUs are free": (
        [
            Told(0, Phase.STARTING),
            Told(30, Phase.RUNNING),
            Told(50, Phase.RUNNING, resumed_from=0),
            Told(350, Phase.EVALUATING, resumed_from=0),
            Told(900, Phase.SUCCEEDED, resumed_from=0),
        ],
        (30 * 16, 20 * 16, 300 * 16, 0),
    ),
    "no node is free for ten minutes": (
        [
            Told(0, Phase.STARTING),
            Told(4, Phase.PENDING),
            Told(600, Phase.RUNNING),
            Told(610, Phase.RUNNING, resumed_from=0),
            Told(710, Phase.SUCCEEDED, resumed_from=0),
        ],
        (600 * 16, 10 * 16, 100 * 16, 0),
    ),
    "a node dies 40 seconds after a checkpoint": (
        [
            Told(0, Phase.STARTING),
            Told(10, Phase.RUNNING),
            Told(20, Phase.RUNNING, resumed_from=0),
            Told(125, Phase.RUNNING, resumed_from=0, checkpoint=(100, 120)),
            Told(160, Phase.RESTARTING, resumed_from=0, checkpoint=(100, 120)),
            Told(175, Phase.STARTING, attempt=2),
            Told(180, Phase.RUNNING, attempt=2),
            Told(190, Phase.RUNNING, attempt=2, resumed_from=100),
            Told(290, Phase.SUCCEEDED, attempt=2, resumed_from=100),
        ],
        ((10 + 5) * 16, (10 + 10) * 16, (100 + 100) * 16, (40 + 15) * 16),
    ),
    "it breaks off before the first checkpoint, for good": (
        [
            Told(0, Phase.STARTING),
            Told(10, Phase.RUNNING),
            Told(20, Phase.RUNNING, resumed_from=0),
            Told(100, Phase.FAILED, resumed_from=0),
        ],
        (10 * 16, 10 * 16, 0, 80 * 16),
    ),
    "it is suspended for an hour, and writes a checkpoint before": (
        [
            Told(0, Phase.STARTING),
            Told(10, Phase.RUNNING),
            Told(20, Phase.RUNNING, resumed_from=0),
            Told(100, Phase.SUSPENDING, resumed_from=0),
            Told(108, Phase.SUSPENDED, resumed_from=0, checkpoint=(80, 105)),
            Told(3708, Phase.STARTING, attempt=2),
            Told(3718, Phase.RUNNING, attempt=2),
            Told(3720, Phase.RUNNING, attempt=2, resumed_from=80),
            Told(3820, Phase.SUCCEEDED, attempt=2, resumed_from=80),
        ],
        ((10 + 10) * 16, (10 + 2) * 16, (85 + 100) * 16, 3 * 16),
    ),
    "the newest checkpoint is damaged, and half of the steps are done again": (
        [
            Told(0, Phase.STARTING),
            Told(10, Phase.RUNNING),
            Told(10, Phase.RUNNING, resumed_from=0),
            Told(110, Phase.RUNNING, resumed_from=0, checkpoint=(50, 60)),
            Told(115, Phase.RUNNING, resumed_from=0, checkpoint=(100, 110)),
            Told(115, Phase.RESTARTING, resumed_from=0, checkpoint=(100, 110)),
            Told(120, Phase.STARTING, attempt=2),
            Told(130, Phase.RUNNING, attempt=2, resumed_from=50, checkpoint=(50, 60)),
            Told(230, Phase.SUCCEEDED, attempt=2, resumed_from=50),
        ],
        ((10 + 10) * 16, 0, (50 + 100) * 16, (50 + 5 + 5) * 16),
    ),
    "a queue takes its place for a minute, in mid-attempt": (
        [
            Told(0, Phase.PENDING),
            Told(10, Phase.RUNNING),
            Told(20, Phase.RUNNING, resumed_from=0),
            Told(100, Phase.PENDING, resumed_from=0, checkpoint=(80, 98)),
            Told(160, Phase.RUNNING, resumed_from=80),
            Told(200, Phase.SUCCEEDED, resumed_from=80),
        ],
        ((10 + 60) * 16, 10 * 16, (78 + 40) * 16, 2 * 16),
    ),
    "the clock of rank 0's node is ahead": (
        [
            Told(0, Phase.RUNNING, resumed_from=0),
            Told(100, Phase.RUNNING, resumed_from=0, checkpoint=(10, 130)),
            Told(110, Phase.FAILED, resumed_from=0, checkpoint=(10, 130)),
        ],
        (0, 0, 100 * 16, 10 * 16),
    ),
}


@pytest.mark.parametrize("case", HISTORIES)
def test_the_gpu_seconds_of_a_job_of_which(case: str) -> None:
    story, expected = HISTORIES[case]
    ledger = play(*story).accounting
    assert tuple(gpu_seconds(ledger).values()) == expected


@pytest.mark.parametrize("case", HISTORIES)
def test_telling_the_same_again_and_again_changes_no_ledger(case: str) -> None:
    story, _ = HISTORIES[case]
    twice = [told for told in story for _ in range(2)]
    assert play(*twice).accounting == play(*story).accounting


def test_nothing_is_counted_before_the_training_stage() -> None:
    assert accounted(FineTuneJobStatus(), PREPARING, START, NUM_GPUS).accounting is None


def test_while_nothing_changes_nothing_is_written() -> None:
    status = play(Told(0, Phase.STARTING), Told(10, Phase.RUNNING, resumed_from=0))
    for seconds in (20, 300, 86400):
        assert accounted(status, status, moment(seconds), NUM_GPUS) == status


def test_what_goes_on_is_told_with_the_time_since_when() -> None:
    ledger = play(Told(0, Phase.STARTING), Told(10, Phase.RUNNING)).accounting
    assert ledger is not None
    assert (ledger.activity, ledger.since) == (Activity.STARTING, "2026-11-23T05:00:10Z")


def test_what_a_ledger_grew_by_is_counted_and_what_was_taken_away_again_is_not() -> None:
    begun = [Told(0, Phase.STARTING), Told(10, Phase.RUNNING, resumed_from=0)]
    secured = [*begun, Told(115, Phase.RUNNING, resumed_from=0, checkpoint=(100, 110))]
    broken = [*secured, Told(120, Phase.RESTARTING, checkpoint=(100, 110)), Told(130, Phase.STARTING, attempt=2)]
    again = [*broken, Told(140, Phase.RUNNING, attempt=2, resumed_from=0)]
    stories = [[], begun, secured, broken, again]
    ledgers = [play(*story).accounting for story in stories]
    assert [growth_between(*pair) for pair in pairwise(ledgers)] == [
        {"queued": 10 * 16},
        {"productive": 100 * 16},
        {"lost": (10 + 10) * 16},
        {"queued": 10 * 16, "lost": 100 * 16},
    ]


PHASES = st.sampled_from(
    [Phase.PENDING, Phase.STARTING, Phase.RUNNING, Phase.RESTARTING, Phase.SUSPENDING, Phase.SUSPENDED]
)
STORIES = st.lists(
    st.tuples(
        st.floats(0, 5000),  # seconds since the last word
        PHASES,
        st.one_of(st.none(), st.integers(0, 200)),  # the step that it resumed from
        st.one_of(st.none(), st.tuples(st.integers(1, 200), st.floats(-300, 60))),  # a checkpoint, about now
    ),
    min_size=1,
    max_size=30,
)


@given(STORIES, st.sampled_from([Phase.SUCCEEDED, Phase.FAILED]), st.integers(1, 64))
def test_the_kinds_add_up_to_the_wall_time_while_not_suspended(
    words: list[tuple[float, Phase, int | None, tuple[int, float] | None]], last: Phase, num_gpus: int
) -> None:
    status, now, free_seconds, attempt = PREPARING, START, 0, 1
    free_since = None
    for seconds, phase, resumed_from, checkpoint in [*words, (1.5, last, None, None)]:
        now += timedelta(seconds=seconds)
        attempt += phase is Phase.RESTARTING
        attempts = (Attempt(number=attempt, started="2026-11-23T05:00:00Z", resumed_from_step=resumed_from),)
        after = status.model_copy(update={"phase": phase, "attempts": attempts})
        if checkpoint is not None:
            step, late = checkpoint
            time = (now + timedelta(seconds=late)).isoformat()
            after = after.model_copy(update={"checkpoint": Checkpoint(step=step, time=time)})
        began = status.accounting is None
        status = accounted(status, after, now, num_gpus)
        assert status.accounting is not None
        second = now.replace(microsecond=0)
        if began:
            start = second
        # Whoever is free is free from the second in which it was told until the second in which something else was.
        if free_since is not None:
            free_seconds += int((second - free_since).total_seconds())
        free_since = second if status.accounting.activity is Activity.NONE else None
    wall_seconds = int((second - start).total_seconds())
    assert sum(gpu_seconds(status.accounting).values()) == (wall_seconds - free_seconds) * num_gpus
    assert min(gpu_seconds(status.accounting).values()) >= 0
