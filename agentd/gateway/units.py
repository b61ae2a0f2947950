"""What the daemon and the router say about units, as far as a model call is concerned.

Knows which key is alive, whose limit is what, and which message a unit holds. Without the daemon the last known facts
apply; a unit never heard of gets the default limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentd.gateway.config import Config, OnExhausted
from agentd.model.quantity import Allowance
from agentd.model.unit import Budget, Llm
from agentd.wire import key
from agentd.wire.facts import Change

_DEFAULT_LIMIT: Allowance = Budget().tokens
_DEFAULT_SILENCE: float = Llm().silence


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a key belongs to. A key of stand-alone use has no invocation."""

    unit: str
    invocation: str | None


@dataclass(frozen=True, slots=True)
class Policy:
    """A unit's budget and how long its calls may be silent."""

    tokens: Allowance | None = _DEFAULT_LIMIT
    on_exhausted: OnExhausted = "hold"
    silence: float = _DEFAULT_SILENCE


@dataclass(frozen=True, slots=True)
class Life:
    """What is known of a unit's invocations."""

    newest: str = ""
    living: str | None = None
    ended: frozenset[str] = frozenset()
    down: bool = False
    hold: bool = False


def _life(fact: Mapping[str, Any], before: Life) -> Life:
    living = fact.get("invocation")
    ended = frozenset(str(invocation) for invocation, *_ in fact.get("endings") or ())
    newest = max([before.newest, living or "", *ended])
    return Life(newest, living, ended, bool(fact.get("down")), bool(fact.get("hold")))


def _policy(fact: Mapping[str, Any]) -> Policy:
    budget, llm = fact.get("budget") or {}, fact.get("llm") or {}
    tokens = budget.get("tokens", [_DEFAULT_LIMIT.amount, _DEFAULT_LIMIT.window])
    return Policy(
        Allowance(*tokens) if tokens else None,
        budget.get("on_exhausted", "hold"),
        float(llm.get("silence") or _DEFAULT_SILENCE),
    )


class Units:
    """The last known facts."""

    def __init__(self, config: Config, secret: bytes | None) -> None:
        self._secret = secret
        self._keys = {entry.key: entry for entry in config.keys}
        self._policies = {entry.unit: Policy(entry.tokens, entry.on_exhausted) for entry in config.keys}
        self._lives: dict[str, Life] = {}
        self._held: dict[str, list[dict[str, Any]]] = {}
        self._conversations: dict[str, tuple[str | None, str]] = {}

    def identify(self, token: str) -> Caller | None:
        """Who holds this key, if it is genuine; whether it is alive is another question."""
        entry = self._keys.get(token)
        if entry is not None:
            return Caller(entry.unit, None)
        proven = key.verify(self._secret, token) if self._secret else None
        return Caller(*proven) if proven else None

    def alive(self, caller: Caller) -> bool:
        """Whether the key's invocation may still call: it is the newest known, and neither over nor down."""
        life = self._lives.get(caller.unit)
        if caller.invocation is None or life is None or caller.invocation > life.newest:
            return True
        return caller.invocation == life.newest and caller.invocation not in life.ended and not life.down

    def held(self, unit: str) -> bool:
        """Whether the daemon is holding the unit for its budget."""
        life = self._lives.get(unit)
        return life is not None and life.hold

    def policy(self, unit: str) -> Policy:
        """The unit's budget policy, the default one if nothing is known."""
        return self._policies.get(unit, Policy())

    def known(self) -> list[str]:
        """All units with a known policy."""
        return list(self._policies)

    def attribution(self, caller: Caller) -> tuple[str | None, str | None]:
        """Message and conversation that a call now belongs to."""
        held = self._held.get(caller.unit)
        if held:
            return held[0].get("message"), held[0].get("conversation")
        invocation, conversation = self._conversations.get(caller.unit, (None, ""))
        return None, conversation if conversation and invocation == caller.invocation else None

    def daemon_says(self, change: Change) -> set[str]:
        """Take in facts of the daemon; the units that it said something about."""
        touched = set()
        for name, fact in change.set.items():
            if name.startswith("unit/"):
                unit = name.removeprefix("unit/")
                self._lives[unit] = _life(fact, self._lives.get(unit, Life()))
                self._policies[unit] = _policy(fact)
                touched.add(unit)
        for name in () if change.full else change.gone:  # a daemon that just came back may not know it yet
            unit = name.removeprefix("unit/")
            if name.startswith("unit/") and unit in self._lives:  # removed: its keys are dead for good
                self._lives[unit] = Life(self._lives[unit].newest, None, frozenset(), down=True)
                self._policies.pop(unit, None)
                touched.add(unit)
        return touched

    def router_says(self, change: Change) -> None:
        """Take in facts of the router."""
        for name, fact in change.set.items():
            if name.startswith("unit/"):
                unit = name.removeprefix("unit/")
                self._held[unit] = held = list(fact.get("held") or ())
                if held and held[0].get("conversation"):
                    self._conversations[unit] = (fact.get("connected"), held[0]["conversation"])
        for name in change.gone:
            self._held.pop(name.removeprefix("unit/"), None)

    def router_away(self) -> None:
        """Without the router calls belong to their unit only."""
        self._held.clear()
        self._conversations.clear()
