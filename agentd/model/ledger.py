"""The ledger of tokens: who may spend how much, what is held for open calls, and what was spent.

Pure: `Ledger.reserve` decides and changes nothing; `Ledger.apply` is the only thing that changes the books, by one
record. The state is therefore always the sum of its records, and replaying them gives the same books. Time is an
argument (unix seconds). This file knows nothing of files, of HTTP, or of which unit runs.

A scope is a name such as ``unit/writer`` or ``fleet``. Its limit is an amount per window. A window's period is a
number that only grows: a clock that went back never opens an old period again. A call holds its upper bound in all
of its scopes or in none, and is settled into the periods that it was held in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from agentd.model.quantity import Window

FLOOR = 256
"""A call is refused only when not even this much output (or what it asked for, if less) fits any more."""

_SECONDS: dict[Window, int] = {"minute": 60, "hour": 3600, "day": 86400}


def period_of(window: Window, now: float) -> int:
    """The number of the window that unix time `now` lies in (UTC)."""
    if window == "lifetime":
        return 0
    if window == "month":
        day = datetime.fromtimestamp(now, UTC)
        return day.year * 12 + day.month - 1
    return int(now // _SECONDS[window])


def end_of(window: Window, period: int) -> int | None:
    """When this period ends, in unix seconds; None for a lifetime."""
    if window == "lifetime":
        return None
    if window == "month":
        year, month = divmod(period + 1, 12)
        return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp())
    return (period + 1) * _SECONDS[window]


@dataclass(frozen=True, slots=True)
class Share:
    """One period of one scope's window."""

    scope: str
    window: Window
    period: int


@dataclass(frozen=True, slots=True)
class Limit:
    """Record: from now on this scope has this limit; None is metered without a limit."""

    scope: str
    amount: int | None
    window: Window


@dataclass(frozen=True, slots=True)
class Hold:
    """Record: this much is held for a call. `each` is the largest output of one choice, written upstream."""

    id: int
    tokens_in: int
    tokens_out: int
    each: int
    shares: tuple[Share, ...]
    call: Mapping[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All that the call can cost, in tokens."""
        return self.tokens_in + self.tokens_out


@dataclass(frozen=True, slots=True)
class Settle:
    """Record: the call is over and cost this much; its hold is gone."""

    id: int
    charged: int
    why: str


@dataclass(frozen=True, slots=True)
class Raise:
    """Record: this period may spend more."""

    share: Share
    tokens: int
    actor: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reset:
    """Record: what this period spent is forgiven; holds and raises stay."""

    share: Share
    actor: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Record: a call of `scope` needed `need` tokens, and what `share` has spent leaves less than that."""

    scope: str
    share: Share
    need: int


Record = Limit | Hold | Settle | Raise | Reset | Mark


@dataclass(frozen=True, slots=True)
class Ask:
    """What a call wants: an upper bound of its input, and at most `wanted` tokens for each of its choices."""

    tokens_in: int
    wanted: int
    scopes: tuple[str, ...]
    choices: int = 1
    call: Mapping[str, Any] = field(default_factory=dict)

    def need(self, floor: int = FLOOR) -> int:
        """The least that must be left for this call."""
        return self.tokens_in + min(self.wanted, floor) * self.choices


@dataclass(frozen=True, slots=True)
class Standing:
    """How a scope stands in its present period, in tokens."""

    share: Share
    limit: int | None
    raised: int
    used: int
    held: int

    @property
    def allowed(self) -> int | None:
        """Limit and raises together."""
        return None if self.limit is None else self.limit + self.raised

    @property
    def left(self) -> int | None:
        """What the next call may still hold."""
        return None if self.limit is None else self.limit + self.raised - self.used - self.held

    @property
    def unspent(self) -> int | None:
        """What would be left if every open call cost nothing."""
        return None if self.limit is None else self.limit + self.raised - self.used

    @property
    def resets_at(self) -> int | None:
        """When the period ends, in unix seconds."""
        return end_of(self.share.window, self.share.period)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not now: `standing` is the tightest scope, and the call needs at least `need` tokens of it."""

    standing: Standing
    need: int

    @property
    def spent_out(self) -> bool:
        """Settled spending alone refuses it: waiting for open calls to end cannot help."""
        unspent = self.standing.unspent
        return unspent is not None and unspent < self.need

    @property
    def hopeless(self) -> bool:
        """Not even a fresh period could take it."""
        allowed = self.standing.allowed
        return allowed is not None and allowed < self.need


@dataclass(slots=True)
class Account:
    """One scope's present period."""

    period: int
    used: int = 0
    held: int = 0
    raised: int = 0


@dataclass(slots=True)
class Ledger:
    """The books: the sum of the records applied so far."""

    limits: dict[str, Limit] = field(default_factory=dict)
    accounts: dict[tuple[str, Window], Account] = field(default_factory=dict)
    holds: dict[int, Hold] = field(default_factory=dict)
    marks: dict[str, Mark] = field(default_factory=dict)
    last_id: int = 0

    # -- reading

    def share(self, scope: str, now: float) -> Share:
        """The present period of a scope; never one before the last that was used."""
        window = self.limits[scope].window
        account = self.accounts.get((scope, window))
        period = period_of(window, now)
        return Share(scope, window, max(period, account.period) if account else period)

    def standing(self, scope: str, now: float) -> Standing:
        """How a scope stands; KeyError if it never had a limit."""
        share = self.share(scope, now)
        limit = self.limits[scope].amount
        account = self.accounts.get((scope, share.window))
        if account is None or account.period < share.period:
            return Standing(share, limit, 0, 0, 0)
        return Standing(share, limit, account.raised, account.used, account.held)

    def exhausted(self, scope: str, now: float) -> Standing | None:
        """The standing that keeps this scope exhausted; None when its last refused call would now fit."""
        mark = self.marks.get(scope)
        if mark is None or mark.share.scope not in self.limits:
            return None
        standing = self.standing(mark.share.scope, now)
        if standing.share != mark.share or standing.unspent is None or standing.unspent >= mark.need:
            return None
        return standing

    # -- deciding

    def reserve(self, ask: Ask, now: float, floor: int = FLOOR) -> Hold | Refusal:
        """A hold over all scopes of the call, its output clamped to what is left; or why not."""
        standings = [self.standing(scope, now) for scope in ask.scopes]
        limited = [(s.left, s) for s in standings if s.left is not None]
        each = ask.wanted
        if limited:
            left, tightest = min(limited, key=lambda pair: pair[0])
            if left < ask.need(floor):
                return Refusal(tightest, ask.need(floor))
            each = min(ask.wanted, (left - ask.tokens_in) // ask.choices)
        shares = tuple(s.share for s in standings)
        return Hold(self.last_id + 1, ask.tokens_in, each * ask.choices, each, shares, ask.call)

    def marking(self, scope: str, refusal: Refusal, now: float) -> Mark | None:
        """The record that a refusal leaves, if it says something new."""
        if not refusal.spent_out or refusal.hopeless:
            return None
        mark = self.marks.get(scope)
        if mark and mark.share == refusal.standing.share and self.exhausted(scope, now):
            return Mark(scope, mark.share, refusal.need) if refusal.need < mark.need else None
        return Mark(scope, refusal.standing.share, refusal.need)

    # -- changing

    def apply(self, record: Record) -> None:
        """Change the books by one record. ValueError if it contradicts them."""
        match record:
            case Limit():
                self.limits[record.scope] = record
                self._unmark(record.scope)
            case Hold():
                self._hold(record)
            case Settle():
                self._settle(record)
            case Raise():
                self._open(record.share).raised += record.tokens
                self._unmark(record.share.scope)
            case Reset():
                self._open(record.share).used = 0
                self._unmark(record.share.scope)
            case Mark():
                self.marks[record.scope] = record

    def _hold(self, hold: Hold) -> None:
        if hold.id <= self.last_id:
            raise ValueError(f"hold {hold.id} comes after hold {self.last_id}")
        self.last_id = hold.id
        self.holds[hold.id] = hold
        for share in hold.shares:
            self._open(share).held += hold.total

    def _settle(self, settle: Settle) -> None:
        hold = self.holds.pop(settle.id, None)
        if hold is None:
            raise ValueError(f"settles hold {settle.id}, which is not open")
        for share in hold.shares:
            account = self.accounts[(share.scope, share.window)]
            if account.period == share.period:
                account.held -= hold.total
                account.used += settle.charged

    def _unmark(self, scope: str) -> None:
        """Forget the marks that more tokens have answered, so that only a new refusal marks again."""
        limit = self.limits[scope]
        for name, mark in list(self.marks.items()):
            if mark.share.scope != scope:
                continue
            account = self.accounts.get((scope, limit.window))
            spent, raised = (account.used, account.raised) if account else (0, 0)
            if limit.amount is None or limit.amount + raised - spent >= mark.need:
                del self.marks[name]

    def _open(self, share: Share) -> Account:
        key = (share.scope, share.window)
        account = self.accounts.get(key)
        if account is None or account.period < share.period:
            account = self.accounts[key] = Account(share.period)
        if account.period > share.period:
            raise ValueError(f"{share.scope}: period {share.period} comes after period {account.period}")
        return account
