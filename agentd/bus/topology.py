"""What agentd keeps on the bus: three streams, their subjects and bounds.

| stream | subjects | holds |
|---|---|---|
| AGENTD_MESSAGES | agentd.msg.UNIT | messages that wait in an inbox or are held; purged once acknowledged |
| AGENTD_DEAD | agentd.dead.UNIT | dead letters |
| AGENTD_STATE | agentd.state.UNIT | one record per inbox: who holds what, attempts by cause, effect ids |

Only the router writes here. All of the server's header powers (roll-up, TTL, schedules, counters, batches) are off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentd.bus.connection import Connection
from agentd.errors import BusUnavailable

MESSAGES = "AGENTD_MESSAGES"
DEAD = "AGENTD_DEAD"
STATE = "AGENTD_STATE"

DUPLICATE_WINDOW = 120.0
"""Seconds in which a repeated id is stored once."""

_MIB = 1 << 20
_NANO = 1_000_000_000
_NOT_FOUND = 10059
_CONFIG_IMMUTABLE_TOLERATED = 10052


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes that each stream may use; their sum must stay below the server's max_file_store."""

    messages: int = 768 * _MIB
    dead: int = 192 * _MIB
    state: int = 48 * _MIB


def message_subject(unit: str) -> str:
    """Where the messages for ``unit`` are stored."""
    return f"agentd.msg.{unit}"


def dead_subject(unit: str) -> str:
    """Where the dead letters of ``unit`` are stored."""
    return f"agentd.dead.{unit}"


def state_subject(unit: str) -> str:
    """Where the record of ``unit`` is stored."""
    return f"agentd.state.{unit}"


def deliver_subject(unit: str) -> str:
    """Where the server pushes to; literal, because a wildcard does not count as interest."""
    return f"agentd.deliver.{unit}"


async def declare(connection: Connection, bounds: Bounds) -> None:
    """Create the streams, or bring their bounds up to date. Repeating it is harmless."""
    for stream in _streams(bounds):
        await _declare(connection, stream)


def _streams(bounds: Bounds) -> list[dict[str, Any]]:
    messages = _stream(MESSAGES, "agentd.msg.*", bounds.messages, discard="new")
    # A full dead-letter stream gives up its oldest letter: refusing would leave the poison in the inbox.
    dead = _stream(DEAD, "agentd.dead.*", bounds.dead, discard="old")
    state = _stream(STATE, "agentd.state.*", bounds.state, discard="old") | {"max_msgs_per_subject": 1}
    return [messages, dead | {"duplicate_window": 3600 * _NANO, "max_age": 30 * 86400 * _NANO}, state]


def _stream(name: str, subject: str, max_bytes: int, *, discard: str) -> dict[str, Any]:
    return {
        "name": name,
        "subjects": [subject],
        "retention": "limits",
        "storage": "file",
        "discard": discard,
        "max_bytes": max_bytes,
        "max_msgs": -1,
        "max_consumers": -1,
        "max_msg_size": -1,
        "max_age": 0,
        "max_msgs_per_subject": -1,
        "num_replicas": 1,
        "duplicate_window": int(DUPLICATE_WINDOW) * _NANO,
        "allow_direct": True,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
        "allow_msg_schedules": False,
        "allow_msg_counter": False,
        "allow_atomic": False,
        "deny_delete": False,
        "deny_purge": False,
    }


async def inboxes(connection: Connection) -> frozenset[str]:
    """The units for which messages are stored, done or not: one question for all of them."""
    found: set[str] = set()
    while True:
        asked = {"subjects_filter": message_subject("*"), "offset": len(found)}
        state = (await connection.api(f"STREAM.INFO.{MESSAGES}", asked))["state"]
        subjects = state.get("subjects") or {}
        found |= {subject.rsplit(".", 1)[1] for subject in subjects}
        if not subjects or len(found) >= state.get("num_subjects", 0):
            return frozenset(found)


async def _declare(connection: Connection, stream: dict[str, Any]) -> None:
    try:
        found = await connection.api(f"STREAM.INFO.{stream['name']}")
    except BusUnavailable as e:
        if e.detail.get("err_code") != _NOT_FOUND:
            raise
        await connection.api(f"STREAM.CREATE.{stream['name']}", stream, timeout=5.0)
        return
    if any(found["config"].get(key, False) != value for key, value in stream.items()):
        await connection.api(f"STREAM.UPDATE.{stream['name']}", found["config"] | stream, timeout=5.0)
