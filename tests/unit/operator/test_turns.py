"""So many turns a second and no more, in the order in which they were asked for."""

from datetime import UTC, datetime, timedelta

from finetune_operator.turns import Turns

START = datetime(2026, 11, 28, 5, 0, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_after_a_quiet_time_several_have_their_turn_at_once_and_the_others_one_after_the_other() -> None:
    turns: Turns[str] = Turns(per_second=4, at_once=2)
    assert [turns.take(key, START) for key in "abcde"] == [True, True, True, False, False]
    assert [turns.seconds_until(key, START) for key in "cde"] == [None, 0.25, 0.5]


def test_a_turn_stays_where_it_is_until_it_is_taken() -> None:
    turns: Turns[str] = Turns(per_second=4, at_once=0)
    assert turns.take("a", START)
    assert not turns.take("b", START)
    assert not turns.take("b", after(0.2))
    assert turns.take("b", after(0.25))
    assert turns.seconds_until("b", after(0.25)) is None


def test_a_thousand_that_come_at_once_take_four_minutes() -> None:
    turns: Turns[int] = Turns(per_second=4, at_once=16)
    assert sum(turns.take(key, START) for key in range(1000)) == 17
    waits = [turns.seconds_until(key, START) for key in range(17, 1000)]
    assert waits == [0.25 * place for place in range(1, 984)]


def test_a_key_that_is_forgotten_waits_for_no_turn() -> None:
    turns: Turns[str] = Turns(per_second=4, at_once=0)
    turns.take("a", START)
    turns.take("b", START)
    turns.forget("b")
    assert turns.seconds_until("b", START) is None


def test_a_turn_can_be_had_for_later_and_those_that_nobody_took_are_still_there_then() -> None:
    turns: Turns[str] = Turns(per_second=4, at_once=2)
    assert [turns.reserve(key, after(2)) for key in "abcd"] == [after(2), after(2), after(2), after(2.25)]
    assert not turns.take("a", after(1.9))
    assert turns.take("a", after(2))
    assert turns.seconds_until("d", after(2)) == 0.25
