"""The books of tokens: never above a limit, never refilled, always the sum of their records."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.model.ledger import (
    FLOOR,
    Ask,
    Hold,
    Ledger,
    Limit,
    Raise,
    Record,
    Refusal,
    Reset,
    Settle,
    end_of,
    period_of,
)

DAY = 86_400
NOON = 1_795_262_400.0  # 2026-11-21T12:00:00Z


def books(*limits: Limit) -> Ledger:
    ledger = Ledger()
    for limit in limits:
        ledger.apply(limit)
    return ledger


def held(ledger: Ledger, ask: Ask, now: float = NOON) -> Hold:
    hold = ledger.reserve(ask, now)
    assert isinstance(hold, Hold)
    ledger.apply(hold)
    return hold


def refused(ledger: Ledger, ask: Ask, now: float = NOON) -> Refusal:
    refusal = ledger.reserve(ask, now)
    assert isinstance(refusal, Refusal)
    return refusal


def test_a_call_is_clamped_to_what_is_left_before_it_is_refused() -> None:
    """A call that wants more than is left gets what is left; it is refused only under the floor."""
    ledger = books(Limit("unit/a", 1000, "day"))
    first = held(ledger, Ask(100, 5000, ("unit/a",)))
    assert (first.each, first.total) == (900, 1000)
    ledger.apply(Settle(first.id, 1000 - FLOOR - 50, "usage"))
    second = held(ledger, Ask(50, 5000, ("unit/a",)))
    assert second.each == FLOOR
    refusal = refused(ledger, Ask(50, 5000, ("unit/a",)))
    assert refusal.need == 50 + FLOOR
    assert refusal.standing.left == 0


def test_a_small_wish_is_no_reason_to_refuse() -> None:
    """A call that asks for less than the floor needs only what it asks for."""
    ledger = books(Limit("unit/a", 60, "day"))
    assert held(ledger, Ask(50, 10, ("unit/a",))).total == 60


def test_all_scopes_or_none() -> None:
    """A call that one scope refuses holds nothing in the others."""
    ledger = books(Limit("unit/a", 100_000, "day"), Limit("fleet", 300, "day"))
    refusal = refused(ledger, Ask(100, 5000, ("unit/a", "fleet")))
    assert refusal.standing.share.scope == "fleet"
    assert ledger.standing("unit/a", NOON).held == 0
    ledger.apply(Raise(ledger.share("fleet", NOON), 1000))
    hold = held(ledger, Ask(100, 5000, ("unit/a", "fleet")))
    assert hold.each == 1200
    assert [ledger.standing(s, NOON).held for s in ("unit/a", "fleet")] == [1300, 1300]


def test_several_choices_share_what_is_left() -> None:
    """The clamp of one choice times the number of choices fits into what is left."""
    ledger = books(Limit("unit/a", 1600, "day"))
    hold = held(ledger, Ask(100, 5000, ("unit/a",), choices=3))
    assert (hold.each, hold.tokens_out) == (500, 1500)


def test_without_a_limit_a_scope_is_metered_only() -> None:
    """No limit refuses nothing, and still counts."""
    ledger = books(Limit("unit/a", None, "day"))
    hold = held(ledger, Ask(10, 1_000_000, ("unit/a",)))
    ledger.apply(Settle(hold.id, 77, "usage"))
    assert ledger.standing("unit/a", NOON).used == 77


def test_a_new_day_begins_empty_and_the_old_one_never_opens_again() -> None:
    """Periods only grow: a clock that goes back finds the newer period, not a fresh old one."""
    ledger = books(Limit("unit/a", 1000, "day"))
    today = held(ledger, Ask(0, 1000, ("unit/a",)))
    ledger.apply(Settle(today.id, 1000, "usage"))
    refused(ledger, Ask(0, 1000, ("unit/a",)))
    tomorrow = held(ledger, Ask(0, 400, ("unit/a",)), NOON + DAY)
    assert tomorrow.shares[0].period == today.shares[0].period + 1
    assert ledger.standing("unit/a", NOON).held == 400
    assert refused(ledger, Ask(601, 1000, ("unit/a",)), NOON - 30 * DAY)


def test_a_late_settlement_goes_to_the_period_of_its_hold() -> None:
    """A call that ends after midnight costs nothing of the new day."""
    ledger = books(Limit("unit/a", 1000, "day"))
    late = held(ledger, Ask(0, 600, ("unit/a",)))
    held(ledger, Ask(0, 300, ("unit/a",)), NOON + DAY)
    ledger.apply(Settle(late.id, 600, "usage"))
    standing = ledger.standing("unit/a", NOON + DAY)
    assert (standing.used, standing.held) == (0, 300)


def test_the_exhausted_mark_is_level() -> None:
    """It stands from a refusal for want of unspent tokens until what was needed is there again."""
    ledger = books(Limit("unit/a", 1000, "day"))
    spent = held(ledger, Ask(0, 900, ("unit/a",)))
    assert ledger.marking("unit/a", refused(ledger, Ask(0, 300, ("unit/a",))), NOON) is None, "only held, not spent"
    ledger.apply(Settle(spent.id, 900, "usage"))
    refusal = refused(ledger, Ask(0, 300, ("unit/a",)))
    mark = ledger.marking("unit/a", refusal, NOON)
    assert mark is not None
    ledger.apply(mark)
    assert ledger.marking("unit/a", refusal, NOON) is None, "said once"
    assert ledger.exhausted("unit/a", NOON) == refusal.standing
    assert ledger.exhausted("unit/a", NOON + DAY) is None, "roll-over"
    share = ledger.share("unit/a", NOON)
    ledger.apply(Raise(share, FLOOR - 101))
    assert ledger.exhausted("unit/a", NOON) is not None
    ledger.apply(Raise(share, 1))
    assert ledger.exhausted("unit/a", NOON) is None, "raised enough"
    assert isinstance(ledger.reserve(Ask(0, 300, ("unit/a",)), NOON), Hold)


def test_reset_forgives_what_was_spent() -> None:
    """After a reset the present period has spent nothing; open calls still hold."""
    ledger = books(Limit("unit/a", 1000, "day"))
    spent = held(ledger, Ask(0, 500, ("unit/a",)))
    ledger.apply(Settle(spent.id, 500, "usage"))
    held(ledger, Ask(0, 300, ("unit/a",)))
    ledger.apply(Reset(ledger.share("unit/a", NOON)))
    standing = ledger.standing("unit/a", NOON)
    assert (standing.used, standing.held, standing.left) == (0, 300, 700)


def test_a_call_larger_than_the_whole_limit_is_hopeless_and_marks_nothing() -> None:
    """Waiting for a fresh period cannot help it, so the unit is not held for its sake."""
    ledger = books(Limit("unit/a", 1000, "day"))
    refusal = refused(ledger, Ask(5000, 10, ("unit/a",)))
    assert refusal.hopeless
    assert ledger.marking("unit/a", refusal, NOON) is None


def test_records_that_contradict_the_books_are_refused() -> None:
    """A hold twice, or a settlement of nothing, is an error and not a guess."""
    ledger = books(Limit("unit/a", 1000, "day"))
    hold = held(ledger, Ask(0, 300, ("unit/a",)))
    with pytest.raises(ValueError, match="comes after"):
        ledger.apply(hold)
    with pytest.raises(ValueError, match="not open"):
        ledger.apply(Settle(99, 1, "usage"))


@given(st.sampled_from(["minute", "hour", "day", "month"]), st.integers(0, 4_000_000_000))
def test_a_period_ends_where_the_next_begins(window: str, now: int) -> None:
    """Every moment lies in exactly one period."""
    period = period_of(window, now)  # type: ignore[arg-type]
    end = end_of(window, period)  # type: ignore[arg-type]
    assert end is not None
    assert end > now
    assert period_of(window, end) == period + 1  # type: ignore[arg-type]
    assert period_of(window, end - 1) == period  # type: ignore[arg-type]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 600), st.integers(1, 3000), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("settle"), st.integers(0, 20), st.floats(0, 1)),
        st.tuples(st.just("raise"), st.integers(1, 2000)),
        st.tuples(st.just("reset")),
        st.tuples(st.just("time"), st.integers(-2 * DAY, 2 * DAY)),
    ),
    max_size=60,
)


def _step(ledger: Ledger, step: tuple[object, ...], now: float) -> Record | None:
    match step:
        case ("ask", int(size), int(wanted), int(choices), bool(both)):
            scopes = ("unit/a", "fleet") if both else ("fleet",)
            ask = Ask(size, wanted, scopes, choices)
            decision = ledger.reserve(ask, now)
            if isinstance(decision, Hold):
                return decision
            assert decision.standing.left is not None
            assert decision.standing.left < size + min(FLOOR, wanted) * choices, "refused only under the floor"
            return ledger.marking(scopes[0], decision, now)
        case ("settle", int(index), float(part)) if ledger.holds:
            hold = list(ledger.holds.values())[index % len(ledger.holds)]
            return Settle(hold.id, int(hold.total * part), "usage")
        case ("raise", int(tokens)):
            return Raise(ledger.share("unit/a", now), tokens)
        case ("reset",):
            return Reset(ledger.share("fleet", now))
    return None


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_spent_and_held_never_pass_the_limit_and_replay_gives_the_same_books(steps: list[tuple[object, ...]]) -> None:
    """Whatever happens in whatever order: used + held ≤ limit + raised, and the records alone rebuild the books."""
    records: list[Record] = [Limit("unit/a", 2000, "day"), Limit("fleet", 5000, "hour")]
    ledger = books(*records)  # type: ignore[arg-type]
    now = NOON
    periods: dict[object, int] = {}
    for step in steps:
        if step[0] == "time":
            now += step[1]  # type: ignore[operator]
        record = _step(ledger, step, now)
        if record is not None:
            ledger.apply(record)
            records.append(record)
        for scope in ("unit/a", "fleet"):
            standing = ledger.standing(scope, now)
            assert standing.used >= 0
            assert standing.held >= 0
            assert standing.left is not None
            assert standing.left >= 0
        for key, account in ledger.accounts.items():
            assert account.period >= periods.get(key, 0), "an old period opened again"
            periods[key] = account.period
    again = Ledger()
    for record in records:
        again.apply(record)
    assert again == ledger
