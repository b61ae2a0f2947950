"""What a unit says on its notify socket, and what of it is told on: at once, or gathered where it could flood.

Knows the socket, the stamps of the present invocation and which of them were told; nothing of processes. What it says
about its main process and about descriptors is handed to those who know.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from agentd.keeper.fdstore import Store
from agentd.keeper.loop import Loop, Timer
from agentd.keeper.notify import FLOOD_GAP, NotifySocket, Stamps
from agentd.keeper.plan import Process, SpawnPlan

LAST_WORDS = 4096
"""Datagrams that are read at the end of an invocation, or dropped before the next."""
STATUS_GAP = 0.1
"""Seconds between two events of one unit about what it said, READY and trigger apart."""
AT_ONCE = {"ready": "ready", "trigger": "trigger"}
"""Events that can happen only once in an invocation, and the stamps that they tell of: told and written at once."""
ASKED = {"extend": "extended", "interval": "interval"}
"""Events about what it asked for, and the stamps that they tell of."""

_Status = tuple[str, bool, bool]
_NOTHING: _Status = ("", False, False)
Json = dict[str, Any]


class Voice:
    """One unit's. ``said(event)`` is called when something is to be told and, with it, written for a next keeper."""

    def __init__(self, loop: Loop, said: Callable[[str], None], claimed: Callable[[str], None]) -> None:
        self.stamps = Stamps()
        self.store = Store(loop, self._stored)
        self.note = ""
        """What was refused last, in words."""
        self._loop, self._said, self._claimed = loop, said, claimed
        self._socket: NotifySocket | None = None
        self._quiet: Timer | None = None
        """Runs after a throttled event; until then the next one waits."""
        self._told: dict[str, Any] = {}
        """What was told last of each event."""
        self._noted = self._store_changed = False
        self._heeded: Callable[[], bool] = lambda: True

    @property
    def dropped(self) -> int:
        """Datagrams that were garbage, or that nobody was there for."""
        return self._socket.dropped if self._socket else 0

    def bind(self, plan: SpawnPlan, inherited: socket.socket | None = None) -> None:
        """Listen where the plan says; another place is left. With all that waits in an ``inherited`` socket."""
        if self._socket and self._socket.path != plan.notify:
            self._close()
        if plan.notify is not None and self._socket is None:
            self._socket = NotifySocket(plan.notify, plan.uid, plan.gid, inherited)
            self._loop.watch_crowd(self._socket.fileno(), lambda _: self._heard())

    def prepare(self, plan: SpawnPlan) -> None:
        """For a new invocation: nothing that was sent before is its own."""
        self.bind(plan)
        if self._socket is not None:
            self._socket.give(plan.uid, plan.gid)
            self._socket.drain(None, most=LAST_WORDS)

    def heed(self, alive: Callable[[], bool]) -> None:
        """Whether there is anybody whose words count."""
        self._heeded = alive

    def hear(self) -> None:
        """Take and tell what it said before it died."""
        self._hush()
        if self._socket:
            self._socket.drain(self.stamps, self.store, LAST_WORDS)
            self.tell()

    def catch_up(self) -> None:
        """Hear what waits now; its turn in the loop may come later."""
        if self._socket:
            self._heard()

    def fresh(self) -> None:
        """No invocation has said anything yet."""
        self.stamps, self._told, self.note, self._noted = Stamps(), {}, "", False
        self._hush()
        if self._store_changed:
            self._loop.after(0, self.tell)

    def refuse(self, text: str) -> None:
        """Something that it said is ignored, for this reason: told with the next gap."""
        if text != self.note:
            self.note, self._noted = text, True

    def forget(self) -> None:
        """Give back everything."""
        self.fresh()
        self.store.clear()
        self._store_changed = False
        self._close()

    # From one keeper to the next

    def remember(self, row: Process) -> None:
        """Of an invocation that was known before us, READY and STATUS were told."""
        said = row.extra
        stopping, reloading = bool(said.get("stopping")), bool(said.get("reloading"))
        asked = {field: said.get(field) for field in (*ASKED.values(), "trigger")}
        self.stamps = Stamps(ready=row.ready, status=row.status, stopping=stopping, reloading=reloading, **asked)
        self._told = {event: getattr(self.stamps, field) for event, field in {**AT_ONCE, **ASKED}.items()}
        self._told["status"] = (row.status, stopping, reloading)

    def handover(self) -> tuple[Json, list[int]]:
        """For this same keeper after its exec, and the descriptors that must stay open."""
        fd = self._socket.fileno() if self._socket else -1
        state = {
            "notify": fd,
            "notify_dropped": self.dropped,
            "told": {event: self._told.get(event) for event in (*ASKED, "trigger")},
            "store": self.store.handover(),
            "store_refused": self.store.refused,
        }
        return state, [*([fd] if fd >= 0 else []), *self.store.fds]

    def resume(self, state: Json, plan: SpawnPlan | None) -> None:
        """Take over what ``handover`` of the program before gave."""
        self._told |= state.get("told", {})
        self.store.resume(state.get("store", []), state.get("store_refused", 0))
        if plan is not None:
            self.bind(plan, socket.socket(fileno=state["notify"]) if state["notify"] >= 0 else None)
        if self._socket:
            self._socket.dropped = state["notify_dropped"]

    def extra(self) -> dict[str, Any]:
        """What a snapshot says of it beside its columns."""
        said = self.stamps
        return {
            "stopping": said.stopping,
            "reloading": said.reloading,
            "extended": said.extended,
            "interval": said.interval,
            "trigger": said.trigger,
            "notify_dropped": self.dropped,
        }

    # Telling

    def _heard(self) -> None:
        assert self._socket is not None
        if not self._heeded():
            count = self._socket.drain(None)
        elif self._socket.beat(self.stamps, self.store):
            if self._socket.flooded(1, self.stamps.beat or 0.0):
                self._loop.rest(self._socket.fileno(), FLOOD_GAP)
            return
        else:
            count = self._socket.drain(self.stamps, self.store) + 1
        if self._socket.flooded(count, time.monotonic()):
            self._loop.rest(self._socket.fileno(), FLOOD_GAP)
        self.tell()

    def _stored(self) -> None:
        """By its own word, or because something hung up."""
        if not self._store_changed and self._quiet is None:
            self._loop.after(0, self.tell)
        self._store_changed = True

    def tell(self) -> None:
        """Hand on what is new, as far as its time has come."""
        if self.stamps.main is not None:
            text, self.stamps.main = self.stamps.main, None
            self._claimed(text)
        for event, field in AT_ONCE.items():
            if (at := getattr(self.stamps, field)) is not None and self._told.get(event) is None:
                self._told[event] = at
                self._said(event)
        if self._quiet is not None:
            return
        told = self._throttled()
        if told:
            self._quiet = self._loop.after(STATUS_GAP, self._again)
        for event in told:
            self._said(event)

    def _throttled(self) -> list[str]:
        """What is different from what was told; from here on it counts as told."""
        told = []
        status = (self.stamps.status, self.stamps.stopping, self.stamps.reloading)
        if status != self._told.get("status", _NOTHING):
            self._told["status"] = status
            told.append("status")
        for event, field in ASKED.items():
            value = getattr(self.stamps, field)
            if value is not None and value != self._told.get(event):
                self._told[event] = value
                told.append(event)
        if self._noted:
            told.append("ignored")
        if self._store_changed:
            told.append("store")
        self._noted = self._store_changed = False
        return told

    def _again(self) -> None:
        """The gap is over: what was said meanwhile is told now."""
        self._quiet = None
        self.tell()

    def _hush(self) -> None:
        if self._quiet:
            self._quiet.cancel()
            self._quiet = None

    def _close(self) -> None:
        if self._socket is not None:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None
