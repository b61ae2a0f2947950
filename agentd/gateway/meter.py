"""The meter: every reservation and settlement, written to the ledger file before it counts.

Joins the pure books (model/ledger.py) with the file, the clock and the calls that wait for budget. Runs on one event
loop; what stands between two awaits is atomic.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agentd.errors import BadInput, NoSuchUnit, OverBudget
from agentd.gateway.clock import Clock
from agentd.gateway.config import OnExhausted
from agentd.gateway.ledgerfile import LedgerFile, LedgerUnwritable
from agentd.model.ledger import Ask, Hold, Ledger, Limit, Raise, Record, Refusal, Reset, Settle, Share, Standing
from agentd.model.quantity import Allowance

FLEET = "fleet"


def scope_of(unit: str) -> str:
    """The scope of a unit's own budget."""
    return f"unit/{unit}"


@dataclass(frozen=True, slots=True)
class Parked:
    """A call that waits for budget."""

    ask: Ask
    hold: asyncio.Future[Hold]


class BudgetExceeded(OverBudget):
    """The budget is used up."""


def _explain(refusal: Refusal) -> str:
    standing = refusal.standing
    share, resets = standing.share, standing.resets_at
    until = (
        f"It resets at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(resets))}." if resets else "It never resets."
    )
    unit = share.scope.removeprefix("unit/")
    return (
        f"agentd: {share.scope} has used {standing.used:,} of its {standing.allowed or 0:,} tokens per {share.window}"
        f" ({standing.held:,} more held by open calls); this call needs at least {refusal.need:,}. {until}"
        f" To go on now: agentctl budget raise {unit} 50k"
    )


class Meter:
    """The books and their file."""

    def __init__(self, file: LedgerFile, clock: Clock, changed: Callable[[set[str]], None]) -> None:
        self.ledger = Ledger()
        self._file = file
        self._clock = clock
        self._changed = changed
        self._parked: list[Parked] = []
        self._timer: asyncio.TimerHandle | None = None
        self._arming: asyncio.Handle | None = None
        self._fleet = False

    # -- opening

    def open(self) -> list[tuple[Hold, Settle]]:
        """Replay the file, then charge in full what was open when the last gateway ended. Those calls."""
        self._file.replay(self.ledger.apply)
        lost = []
        for hold in list(self.ledger.holds.values()):
            settle = Settle(hold.id, hold.total, "crashed")
            self._write(settle)
            lost.append((hold, settle))
        self._arm()
        return lost

    async def close(self) -> None:
        """Nothing is admitted any more."""
        for handle in (self._timer, self._arming):
            if handle is not None:
                handle.cancel()
        await self._file.close()

    def limit(self, scope: str, allowance: Allowance | None) -> None:
        """State a scope's limit; written only if it is new. None meters without a limit."""
        self._fleet = self._fleet or scope == FLEET
        before = self.ledger.limits.get(scope)
        window = allowance.window if allowance else (before.window if before else "day")
        record = Limit(scope, allowance.amount if allowance else None, window)
        if record != before:
            self._write(record)
            self._moved({scope})
            if self._arming is None:  # once for all limits of this turn: it looks at every scope
                self._arming = asyncio.get_running_loop().call_soon(self._arm)

    # -- calls

    async def reserve(self, ask: Ask, on_exhausted: OnExhausted, wait: float, parked: Callable[[], None]) -> Hold:
        """A hold that is on disk. By `on_exhausted` it may wait up to `wait` seconds; `parked` is called if it does.

        BudgetExceeded if it is refused, LedgerUnwritable if the hold cannot be written.
        """
        if self._fleet:
            ask = Ask(ask.tokens_in, ask.wanted, (*ask.scopes, FLEET), ask.choices, ask.call)
        decision = self._try(ask)
        if isinstance(decision, Hold):
            return decision
        if on_exhausted != "refuse":
            self._mark(ask.scopes[0], decision)
        if on_exhausted != "hold" or decision.hopeless:
            raise BudgetExceeded(_explain(decision))
        waiting = Parked(ask, asyncio.get_running_loop().create_future())
        self._parked.append(waiting)
        parked()
        taken = False
        try:
            async with asyncio.timeout(wait):
                hold = await waiting.hold
                taken = True
                return hold
        except TimeoutError:
            raise BudgetExceeded(_explain(self._refusal(ask, decision))) from None
        finally:
            self._parked.remove(waiting)
            if not taken:
                self._give_back(waiting.hold)

    def dismiss(self, unit: str) -> None:
        """The unit is being held: its calls that wait for budget are refused now, so that it can stop."""
        for waiting in self._parked:
            if waiting.ask.scopes[0] == self.scope(unit) and not waiting.hold.done():
                decision = self._try(waiting.ask)
                if isinstance(decision, Hold):
                    waiting.hold.set_result(decision)
                else:
                    waiting.hold.set_exception(BudgetExceeded(_explain(decision)))

    def settle(self, hold: Hold, charged: int, why: str) -> None:
        """The call is over. If this cannot be written the hold stays, and is charged in full at the next start."""
        self._write(Settle(hold.id, charged, why))
        self._moved({share.scope for share in hold.shares})

    # -- people

    def show(self, unit: str | None = None) -> list[dict[str, Any]]:
        """How one unit or every scope stands, as `budget.show` says it."""
        if unit is not None and self.scope(unit) not in self.ledger.limits:
            raise NoSuchUnit(f"{unit}: no unit of this name has a budget.")
        scopes = [self.scope(unit)] if unit is not None else sorted(self.ledger.limits)
        return [self._shown(self.standing(scope)) for scope in scopes]

    def raise_(self, unit: str, tokens: int, actor: str, reason: str) -> dict[str, Any]:
        """Add tokens to the present period."""
        if type(tokens) is not int or tokens < 1:
            raise BadInput("a budget is raised by a positive number of tokens.", hint="For example: 50k")
        standing = self._of(unit)
        if standing.limit is None:
            raise BadInput(f"{unit} has no token limit: there is nothing to raise.")
        self._write(Raise(standing.share, tokens, actor, reason))
        return self._told(standing.share.scope)

    def reset(self, unit: str, actor: str, reason: str) -> dict[str, Any]:
        """Forgive what the present period spent."""
        standing = self._of(unit)
        self._write(Reset(standing.share, actor, reason))
        return self._told(standing.share.scope)

    # -- looking

    def scope(self, unit: str) -> str:
        """The scope that a person means by a unit's name, or by ``fleet``."""
        return FLEET if unit == FLEET and self._fleet else scope_of(unit)

    def standing(self, scope: str) -> Standing:
        """How a scope stands now."""
        return self.ledger.standing(scope, self._clock.now())

    def exhausted(self, unit: str) -> Standing | None:
        """The standing that keeps a unit exhausted, if it is."""
        return self.ledger.exhausted(scope_of(unit), self._clock.now())

    # -- within

    def _of(self, unit: str) -> Standing:
        scope = self.scope(unit)
        if scope not in self.ledger.limits:
            raise NoSuchUnit(f"{unit}: no unit of this name has a budget.")
        return self.standing(scope)

    def _shown(self, standing: Standing) -> dict[str, Any]:
        share: Share = standing.share
        return {
            "scope": share.scope,
            "used": standing.used,
            "held": standing.held,
            "limit": standing.limit,
            "window": share.window,
            "resets_at": standing.resets_at,
            "raised": standing.raised,
        }

    def _told(self, scope: str) -> dict[str, Any]:
        self._moved({scope})
        return self._shown(self.standing(scope))

    def _write(self, record: Record) -> None:
        self._file.append(record)
        self.ledger.apply(record)

    def _try(self, ask: Ask) -> Hold | Refusal:
        decision = self.ledger.reserve(ask, self._clock.now())
        if isinstance(decision, Hold):
            self._write(decision)
            self._changed(set(ask.scopes))
        return decision

    def _mark(self, scope: str, refusal: Refusal) -> None:
        mark = self.ledger.marking(scope, refusal, self._clock.now())
        if mark is not None:
            self._write(mark)
            self._changed({scope})

    def _refusal(self, ask: Ask, before: Refusal) -> Refusal:
        now = self.ledger.reserve(ask, self._clock.now())
        return now if isinstance(now, Refusal) else before

    def _give_back(self, hold: asyncio.Future[Hold]) -> None:
        """A hold that was granted in the moment in which its call gave up."""
        if hold.done() and not hold.cancelled() and hold.exception() is None:
            self.settle(hold.result(), 0, "dropped")

    def _moved(self, scopes: set[str]) -> None:
        """Something became free or spent: tell it, and try the calls that wait, in their order."""
        self._changed(scopes)
        for waiting in self._parked:
            if waiting.hold.done():
                continue
            try:
                decision = self._try(waiting.ask)
                if isinstance(decision, Refusal):
                    self._mark(waiting.ask.scopes[0], decision)
            except LedgerUnwritable as error:
                waiting.hold.set_exception(error)
                continue
            if isinstance(decision, Hold):
                waiting.hold.set_result(decision)

    def _arm(self) -> None:
        """Wake up when the next period of any scope begins."""
        self._arming = None
        if self._timer is not None:
            self._timer.cancel()
        ends = [end for scope in self.ledger.limits if (end := self.standing(scope).resets_at) is not None]
        if ends:
            delay = max(0.0, min(ends) - self._clock.now()) + 0.001
            self._timer = asyncio.get_running_loop().call_later(delay, self._rolled)

    def _rolled(self) -> None:
        self._moved(set(self.ledger.limits))
        self._arm()
