"""The board: the open calls, and what the gateway tells its neighbours by the facts protocol.

Knows which calls are open and when they last moved a byte; writes facts, records and metrics. Decides nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from agentd.gateway.meter import FLEET, Meter, scope_of
from agentd.gateway.stream import Usage
from agentd.gateway.units import Caller
from agentd.wire.facts import Facts

LISTED = 100
"""Open calls that a unit's fact names; the ones that moved last."""
_START_WITHIN = 0.02
_BYTES_WITHIN = 0.25
_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


@dataclass(slots=True)
class Call:
    """One open model call. Times are CLOCK_MONOTONIC seconds."""

    id: str
    caller: Caller
    message: str | None
    conversation: str | None
    model: str
    upstream: str
    started: float
    task: asyncio.Task[Any]
    last_byte: float | None = None
    parked: bool = False

    def fact(self) -> dict[str, Any]:
        """As it stands in the unit's fact."""
        return {
            "id": self.id,
            "invocation": self.caller.invocation,
            "message": self.message,
            "model": self.model,
            "upstream": self.upstream,
            "started": round(self.started, 3),
            "last_byte": None if self.last_byte is None else round(self.last_byte, 3),
            "parked": self.parked,
        }

    def about(self) -> dict[str, Any]:
        """What records and the ledger say of it."""
        return {
            "call": self.id,
            "invocation": self.caller.invocation,
            "message": self.message,
            "conversation": self.conversation,
            "model": self.model,
            "upstream": self.upstream,
        }


@dataclass(slots=True)
class Tally:
    """Counts of one unit since the gateway started."""

    calls: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    seconds: float = 0.0
    buckets: Counter[float] = field(default_factory=Counter)


class Board:
    """Open calls by unit, and their publication."""

    def __init__(self, facts: Facts) -> None:
        self.meter: Meter | None = None
        self._facts = facts
        self._calls: dict[str, dict[str, Call]] = {}
        self._tallies: dict[str, Tally] = {}
        self._exhausted: dict[str, str] = {}
        self._dirty: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._number = 0

    # -- calls

    def begin(self, caller: Caller, attribution: tuple[str | None, str | None], model: str, upstream: str) -> Call:
        """A call arrived."""
        self._number += 1
        task = asyncio.current_task()
        assert task is not None
        number = f"{self._facts.epoch[:6]}-{self._number}"
        call = Call(number, caller, *attribution, model, upstream, time.monotonic(), task)
        self._calls.setdefault(caller.unit, {})[call.id] = call
        self._touch(caller.unit, _START_WITHIN)
        return call

    def parked(self, call: Call, parked: bool) -> None:
        """The call waits for budget, or does no longer."""
        if call.parked != parked:
            call.parked = parked
            self._touch(call.caller.unit, 0.0)

    def started(self, call: Call) -> None:
        """It is on its way to the upstream."""
        self._facts.record("call.started", call.caller.unit, **call.about())

    def moved(self, call: Call) -> None:
        """A byte of its answer arrived."""
        first = call.last_byte is None
        call.last_byte = time.monotonic()
        self._touch(call.caller.unit, _START_WITHIN if first else _BYTES_WITHIN)

    def settled(self, call: Call, usage: Usage | None, charged: int, outcome: str) -> None:
        """It is over and paid."""
        seconds = time.monotonic() - call.started
        tokens_in, tokens_out = (usage.tokens_in, usage.tokens_out) if usage else (None, None)
        self._facts.record(
            "call.ended",
            call.caller.unit,
            **call.about(),
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            charged=charged,
            outcome=outcome,
            ms=round(seconds * 1000),
        )
        tally = self._tally(call.caller.unit)
        tally.calls[outcome] += 1
        tally.tokens["input"] += tokens_in or 0
        tally.tokens["output"] += tokens_out or 0
        tally.tokens["charged"] += charged
        tally.seconds += seconds
        tally.buckets[next((le for le in _BUCKETS if seconds <= le), float("inf"))] += 1

    def refused(self, unit: str, reason: str, **about: Any) -> None:
        """A call was refused."""
        self._tally(unit).refused += 1
        self._facts.record("call.refused", unit, reason=reason, **about)
        self._touch(unit, _START_WITHIN)

    def end(self, call: Call) -> None:
        """It is no longer open."""
        calls = self._calls[call.caller.unit]
        del calls[call.id]
        if not calls:
            del self._calls[call.caller.unit]
        self._touch(call.caller.unit, _START_WITHIN)

    def calls_of(self, unit: str) -> list[Call]:
        """The open calls of a unit."""
        return list(self._calls.get(unit, {}).values())

    # -- facts

    def changed(self, scopes: set[str]) -> None:
        """The books of these scopes changed."""
        assert self.meter is not None
        if FLEET in scopes:
            scopes = scopes | {scope for scope in self.meter.ledger.limits if scope != FLEET}
        for scope in scopes - {FLEET}:
            unit = scope.removeprefix("unit/")
            self._touch(unit, 0.0 if self._turned(unit) else _START_WITHIN)

    def _turned(self, unit: str) -> bool:
        """Whether `exhausted` turned; each time that it becomes true is a record."""
        assert self.meter is not None
        standing = self.meter.exhausted(unit)
        before = self._exhausted.get(unit)
        if standing is None:
            return self._exhausted.pop(unit, None) is not None
        self._exhausted[unit] = standing.share.scope
        if before is None:
            about = {"scope": standing.share.scope, "limit": standing.allowed, "used": standing.used}
            self._facts.record("budget.exhausted", unit, actor="gateway", **about)
        return before is None

    def _touch(self, unit: str, within: float) -> None:
        """Publish this unit's fact within so many seconds."""
        self._dirty.add(unit)
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + within:
                return
            self._timer.cancel()
        self._timer = loop.call_later(within, self.publish)

    def publish(self) -> None:
        """State what changed since the last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        dirty, self._dirty = self._dirty, set()
        for unit in dirty:
            self._facts.set(f"unit/{unit}", self.fact(unit))

    def fact(self, unit: str) -> dict[str, Any]:
        """The fact of one unit."""
        assert self.meter is not None
        calls = sorted(self.calls_of(unit), key=lambda call: call.last_byte or call.started, reverse=True)
        standing = self.meter.standing(scope_of(unit)) if scope_of(unit) in self.meter.ledger.limits else None
        exhausted = self.meter.exhausted(unit)
        return {
            "calls": [call.fact() for call in calls[:LISTED]],
            "open": len(calls),
            "used": standing.used if standing else 0,
            "held": standing.held if standing else 0,
            "limit": standing.allowed if standing else None,
            "window": standing.share.window if standing else None,
            "resets_at": standing.resets_at if standing else None,
            "exhausted": exhausted
            and {
                "scope": exhausted.share.scope,
                "limit": exhausted.allowed,
                "used": exhausted.used,
                "resets_at": exhausted.resets_at,
            },
            "refused": self._tallies[unit].refused if unit in self._tallies else 0,
        }

    def budget_record(self, kind: str, unit: str, scope: dict[str, Any], actor: str, reason: str, **more: Any) -> None:
        """A person changed a budget."""
        told = {key: scope[key] for key in ("scope", "used", "limit", "raised")}
        self._facts.record(kind, unit, actor=actor, reason=reason, **told, **more)

    # -- metrics

    def _tally(self, unit: str) -> Tally:
        return self._tallies.setdefault(unit, Tally())

    def metrics(self) -> None:
        """State the fact `metrics`."""
        units = sorted(self._tallies)
        tallies = [(unit, self._tallies[unit]) for unit in units]
        self._facts.set(
            "metrics",
            {
                "agentd_calls_total": _metric(
                    "counter",
                    "Model calls that ended, by outcome.",
                    ["unit", "outcome"],
                    [[[unit, kind], count] for unit, tally in tallies for kind, count in sorted(tally.calls.items())],
                ),
                "agentd_tokens_total": _metric(
                    "counter",
                    "Tokens: input and output as the upstream counted them, and what was charged to the budget.",
                    ["unit", "kind"],
                    [[[unit, kind], count] for unit, tally in tallies for kind, count in sorted(tally.tokens.items())],
                ),
                "agentd_calls_refused_total": _metric(
                    "counter",
                    "Model calls that were refused.",
                    ["unit"],
                    [[[unit], tally.refused] for unit, tally in tallies],
                ),
                "agentd_calls_open": _metric(
                    "gauge",
                    "Model calls that are open.",
                    ["unit"],
                    [[[unit], len(self.calls_of(unit))] for unit in units],
                ),
                "agentd_call_seconds": _metric(
                    "histogram",
                    "Time from a model call's arrival to its end.",
                    ["unit"],
                    [[[unit], _histogram(tally)] for unit, tally in tallies],
                ),
                "agentd_budget_used_tokens": self._gauge("used", "Tokens settled in the present window."),
                "agentd_budget_held_tokens": self._gauge("held", "Tokens held for open calls."),
                "agentd_budget_limit_tokens": self._gauge("allowed", "Tokens allowed in the present window."),
            },
        )

    def _gauge(self, attribute: str, text: str) -> dict[str, Any]:
        assert self.meter is not None
        samples = []
        for scope in sorted(self.meter.ledger.limits):
            value = getattr(self.meter.standing(scope), attribute)
            if value is not None:
                samples.append([[scope.removeprefix("unit/")], value])
        return _metric("gauge", text, ["unit"], samples)


def _metric(kind: str, text: str, labels: list[str], samples: list[Any]) -> dict[str, Any]:
    return {"type": kind, "help": text, "labels": labels, "samples": samples}


def _histogram(tally: Tally) -> dict[str, Any]:
    """Cumulative buckets, as Prometheus has them."""
    total, buckets = 0, {}
    for le in _BUCKETS:
        total += tally.buckets[le]
        buckets[f"{le:g}"] = total
    count = total + tally.buckets[float("inf")]
    return {"sum": round(tally.seconds, 6), "count": count, "buckets": {**buckets, "+Inf": count}}
