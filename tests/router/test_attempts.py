"""The pure rules: what counts as an attempt, what is given up, who may get what."""

from __future__ import annotations

import pytest

from agentd.errors import BadInput
from agentd.router.attempts import Attempts, from_record
from agentd.router.hand import Hand, Outcome, Stage, from_hand_record
from agentd.router.known import known
from agentd.router.message import Message, decode, effect, own_id, trace


def message(ident: str = "m", sender: str = "a") -> Message:
    return Message(ident, "b", "k", sender, None, ident, ident, None, 0, "t", reply=False, traceparent="")


@pytest.mark.parametrize("cause", ["stopped", "held", "unstarted"])
def test_innocent_causes_do_not_count(cause: str) -> None:
    """Our own stops are nobody's fault."""
    attempts = Attempts()
    attempts.ended("1", cause, 0.0)
    assert (attempts.number, attempts.exits) == (1, [])


@pytest.mark.parametrize("cause", ["failed", "timed_out", "crashed", "hung", "left", "something new"])
def test_unexplained_exits_count_once_per_invocation(cause: str) -> None:
    """Each invocation's end counts once, however often it is told; an unknown cause is a crash."""
    attempts = Attempts()
    for _ in range(3):
        attempts.ended("1", cause, 0.0)
    assert attempts.number == 2
    assert attempts.verdict(max_deliver=5, poison_after=2) is None
    attempts.ended("2", cause, 0.0)
    assert attempts.verdict(max_deliver=5, poison_after=2) == "poison"


def test_refusals_are_attempts_but_no_exits() -> None:
    """max_deliver bounds refusals; poison does not."""
    attempts = Attempts()
    for _ in range(4):
        attempts.refused()
    assert attempts.verdict(max_deliver=5, poison_after=1) is None
    attempts.refused()
    assert attempts.verdict(max_deliver=5, poison_after=1) == "max_deliver"


def test_the_record_holds_everything() -> None:
    """A router that has just started knows attempts, exits, effects, holders and what was done."""
    hand = Hand()
    item = hand.take(7, "reply", message())
    item.attempts.ended("1", "crashed", 5.0)
    item.attempts.stored("m/1")
    hand.back(item)
    hand.give(item, "2", 0.0)
    done = hand.take(8, "reply", message("n"))
    hand.end(done, Outcome())
    hand.forget(done)
    again = from_hand_record(hand.to_record())
    assert again.attempts == {7: from_record(item.attempts.to_record())}
    assert (again.earlier, dict(again.recent)) == ({7: "2"}, {8: "n.1"})
    back = again.take(7, "reply", message())
    assert (back.stage, back.invocation, back.delivery) == (Stage.OPEN, "2", "m.2")


def test_suspects_go_alone() -> None:
    """While one that a reader died of is open, nothing else is; others wait until it is through."""
    hand = Hand()
    items = [hand.take(n, "", message(str(n))) for n in range(3)]
    items[1].attempts.ended("1", "crashed", 0.0)
    assert hand.next(4, 0.0) == [items[1]]
    hand.give(items[1], "2", 0.0)
    assert hand.next(4, 0.0) == []
    hand.end(items[1], Outcome())
    assert hand.next(4, 0.0) == [items[0], items[2]]
    assert hand.next(1, 0.0) == [items[0]]


def test_the_same_id_of_two_senders_is_told_apart() -> None:
    """Two open deliveries never have the same id."""
    hand = Hand()
    one, two = hand.take(1, "", message(sender="a")), hand.take(2, "", message(sender="c"))
    assert one.delivery != two.delivery
    hand.give(one, "1", 0.0)
    hand.give(two, "1", 0.0)
    assert (hand.of(one.delivery), hand.of(two.delivery)) == (one, two)


def test_who_is_over() -> None:
    """Listed endings have their cause; an older one that is not listed crashed; a newer one may live."""
    fact = {"channel": "c", "invocation": "05", "endings": [["02", "stopped"], ["04", "hung"]]}
    facts = known(fact)
    causes = [facts.over(i) for i in ("01", "02", "03", "04", "05", "06")]
    assert causes == ["crashed", "stopped", "crashed", "hung", None, None]
    assert [facts.delay(n) for n in (1, 2, 3, 9)] == [1.0, 5.0, 30.0, 30.0]


def test_ids() -> None:
    """Effect ids are stable, bounded and distinct for keys and orders."""
    assert effect("m", None, 1) == effect("m", None, 1) != effect("m", "1", 1)
    long = effect("m" * 120, "key with spaces", 1)
    assert own_id(long) == long == effect("m" * 120, "key with spaces", 2)
    for bad in ("", "a b", "ä", "x" * 129, "a\r\nb"):
        with pytest.raises(BadInput):
            own_id(bad)
    parent = trace(None, "1" * 16, "2" * 32)
    assert trace(parent, "3" * 16, "4" * 32) == f"00-{'2' * 32}-{'3' * 16}-01"
    assert decode(message().encode()) == message()
