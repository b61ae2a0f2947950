"""What happens to a runaway when its budget ends, on a whole house: ``hold``, ``refuse`` and ``stop``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.fleet import Fleet, examples, matches
from chaos.fleet import wait_until as wait_for
from tests.fleet import fleet
from tests.waiting import wait_until

LIMIT = 5_000
Json = dict[str, Any]


@pytest.fixture(scope="module")
def house() -> Iterator[Fleet]:
    """Three runaways that differ in ``on_exhausted`` only, and one more to be held over a daemon's death."""
    with tempfile.TemporaryDirectory(prefix="ad", dir="/tmp") as name:
        base = Path(name)
        base.chmod(0o711)
        text = examples(base, ["runaway"], "dry-run-long")["runaway"].replace("20k/day", f"{LIMIT}/day")
        text = text.replace('workdir = "../agents"', f'workdir = "{base / "agents"}"')
        assert 'on_exhausted = "hold"' in text
        assert f"{LIMIT}/day" in text
        units = {how: text.replace('"hold"', f'"{how}"') for how in ("hold", "refuse", "stop")}
        with fleet(base, {**units, "lasting": text}) as running:
            yield running


class Watch:
    """Waits for a unit and looks at its budget all the while: never above what is allowed."""

    def __init__(self, house: Fleet, unit: str) -> None:
        self.house, self.unit = house, unit
        self.highest = 0

    def budget(self) -> Json:
        """The unit's scope; a gateway that is just coming back is waited for."""

        def asked() -> Any:
            status, answer = self.house.ask("GET", f"/v1/budget?unit={self.unit}")
            return answer["scopes"] if status == 200 else None

        scopes = wait_for(asked, 10, "the gateway tells of its budgets")
        scope: Json = next(s for s in scopes if s["scope"] == f"unit/{self.unit}")
        spent = scope["used"] + scope["held"]
        self.highest = max(self.highest, spent)
        assert spent <= scope["limit"] + (scope["raised"] or 0), scope
        return scope

    def until(self, timeout: float = 15, **wanted: Any) -> Json:
        """The unit's status once it is as wanted."""
        last: Json = {}

        def there() -> bool:
            self.budget()
            last.update(self.house.unit(self.unit))
            return matches(last, wanted)

        wait_until(there, timeout, f"{self.unit} is {wanted}")
        return last

    def go(self, conversation: str, **data: Any) -> str:
        """Have it call the model, for ever unless ``calls`` says otherwise; the message's id."""
        message = {"to": self.unit, "kind": "go", "data": data, "conversation": conversation}
        return str(self.house.post("/v1/send", message)["id"])

    def kinds(self, message: str) -> list[str]:
        """What the journal tells of a message."""
        return [r["kind"] for r in self.house.get(f"/v1/journal?message={message}&limit=1000")["records"]]

    def spent_up(self) -> None:
        """Hardly anything is left, and it was never too much."""
        scope = self.budget()
        allowed = scope["limit"] + (scope["raised"] or 0)
        assert allowed - 400 <= scope["used"] <= allowed
        assert scope["held"] == 0


def test_hold_takes_the_message_back_and_a_raise_brings_both_back(house: Fleet) -> None:
    """``held``: the process is gone, the message waits, no attempt counted; after the raise it is delivered again."""
    watch = Watch(house, "hold")
    first = watch.until(state="running")
    sent = watch.go("hold")
    held = watch.until(state="held", pid=None, inbox={"pending": 1, "held": 0, "dead": 0})
    assert held["failures"] == 0
    assert held["holding"] is None
    assert "budget used up" in held["reason"]
    assert held["next"] is not None
    watch.spent_up()
    delivered = [r for r in house.records(unit="hold", kind="message.delivered") if r["message"] == sent]
    assert [r["detail"]["attempt"] for r in delivered] == [1]
    house.post("/v1/budget/hold/raise", {"tokens": LIMIT})
    back = watch.until(state="running")
    assert back["invocation"] > first["invocation"]
    watch.until(state="held", pid=None, inbox={"pending": 1, "held": 0, "dead": 0})
    watch.spent_up()
    assert watch.highest > LIMIT
    delivered = [r for r in house.records(unit="hold", kind="message.delivered") if r["message"] == sent]
    assert [r["detail"]["attempt"] for r in delivered] == [1, 1], "taken back, not failed"
    assert house.unit("hold")["failures"] == 0
    assert house.get("/v1/dlq?unit=hold")["letters"] == []


def test_a_held_units_message_is_finished_after_the_raise(house: Fleet) -> None:
    """The work is not lost: with enough budget the same message comes to its end."""
    watch = Watch(house, "lasting")
    sent = watch.go("lasting", calls=12)
    watch.until(state="held", pid=None, inbox={"pending": 1, "held": 0})
    house.post("/v1/budget/lasting/raise", {"tokens": 20 * LIMIT})
    watch.until(state="running", inbox={"pending": 0, "held": 0, "dead": 0}, activity="idle")
    wait_until(lambda: watch.kinds(sent)[-1:] == ["message.done"], 15, f"{watch.kinds(sent)}")
    house.post("/v1/budget/lasting/reset")


def test_held_is_held_also_for_the_next_daemon(house: Fleet) -> None:
    """kill -9 of the daemon, then of the gateway: still held, nothing runs; only the raise brings the unit back."""
    watch = Watch(house, "lasting")
    watch.go("again")
    held = watch.until(state="held", pid=None, inbox={"pending": 1})
    used = watch.budget()["used"]
    house.kill_daemon()
    wait_until(lambda: matches(house.unit("gateway"), {"state": "running", "ready": True}), 10, "the gateway is known")
    wait_until(lambda: house.unit("lasting")["tokens"], 10, "the gateway has told of its budgets")
    after = house.unit("lasting")
    assert (after["state"], after["pid"], after["invocation"]) == ("held", None, held["invocation"]), after
    gateway = house.unit("gateway")["pid"]
    house.kill(gateway)
    house.wait("gateway", state="running", ready=True, last={"signal": "SIGKILL"})
    wait_until(lambda: house.ask("GET", "/v1/budget?unit=lasting")[0] == 200, 10, "the gateway answers")
    assert watch.budget()["used"] == used
    assert house.unit("lasting")["state"] == "held"
    starts = [r for r in house.records(unit="lasting", kind="unit.starting") if r["at"] > held["since"]]
    assert starts == []
    house.post("/v1/budget/lasting/raise", {"tokens": LIMIT})
    watch.until(state="running")
    watch.until(state="held", pid=None, inbox={"pending": 1})
    watch.spent_up()


def test_refuse_answers_402_at_once_and_the_unit_goes_on(house: Fleet) -> None:
    """The process stays; its message fails by the unit's own word and is tried again, and then it is a dead letter."""
    watch = Watch(house, "refuse")
    before = watch.until(state="running")
    watch.go("refuse")
    wait_until(lambda: house.records(unit="refuse", kind="call.refused"), 15, "a call was refused")
    watch.spent_up()
    after = house.unit("refuse")
    assert (after["state"], after["pid"], after["restarts"]) == ("running", before["pid"], 0), after
    wait_until(lambda: house.records(unit="refuse", kind="message.refused"), 15, "the handler failed")
    assert not house.records(unit="refuse", kind="unit.held")


def test_stop_stops_it_for_good(house: Fleet) -> None:
    """``inactive`` with the reason; a raise alone does not start it, an operator does, and its message is there."""
    watch = Watch(house, "stop")
    watch.until(state="running")
    sent = watch.go("stop", calls=12)
    stopped = watch.until(state="inactive", pid=None, inbox={"pending": 1, "held": 0, "dead": 0})
    assert "budget used up" in stopped["reason"]
    watch.spent_up()
    house.post("/v1/budget/stop/raise", {"tokens": 20 * LIMIT})
    wait_until(lambda: house.records(unit="stop", kind="budget.raised"), 15, "the raise is in the journal")
    assert house.unit("stop")["state"] == "inactive"
    house.post("/v1/units/stop/start")
    wait_until(lambda: watch.kinds(sent)[-1:] == ["message.done"], 15, f"{watch.kinds(sent)}")
    assert house.get("/v1/dlq?unit=stop")["letters"] == []


def test_the_ledger_never_went_over(house: Fleet) -> None:
    """At the end every unit's scope is at or below what it was allowed."""
    for scope in house.get("/v1/budget")["scopes"]:
        if scope["limit"] is not None:
            assert scope["used"] + scope["held"] <= scope["limit"] + (scope["raised"] or 0), scope
    assert os.path.getsize(house.state / "gateway" / "ledger") > 0
