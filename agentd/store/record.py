"""How a record becomes a row of the journal and a row a record again. Knows the columns, no file and no thread.

Records come from other processes too, so nothing that a peer can write may make a whole batch fail: text that is
not UTF-8, a time that is no number and detail that is no JSON are stored in a readable form instead.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

Record = dict[str, Any]
Row = dict[str, Any]

TEXTS = ("unit", "invocation", "actor", "reason", "message", "conversation", "correlation", "epoch")
COLUMNS = frozenset({"at", "kind", "source", "seq", *TEXTS})
DETAIL_MAX = 64 << 10
"""Characters of detail kept per record; what is longer is cut and says so."""


def _text(value: object) -> str:
    """SQLite takes no lone surrogates, which JSON can carry."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _time(value: object) -> float:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return time.time()


def _detail(rest: Record) -> str:
    try:
        text = json.dumps(rest, default=str, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):
        text = json.dumps({"unreadable": repr(rest)[:DETAIL_MAX]})
    if len(text) <= DETAIL_MAX:
        return text
    return json.dumps({"truncated": text[: DETAIL_MAX // 2], "characters": len(text)})


def to_row(record: Record) -> Row:
    """The parameters of insert.sql. Missing ``at`` is now, missing ``source`` is the daemon."""
    row: Row = {name: None if record.get(name) is None else _text(record[name]) for name in TEXTS}
    seq = record.get("seq")
    row["seq"] = seq if isinstance(seq, int) and 0 <= seq < 1 << 63 else None
    row["at"] = _time(record.get("at"))
    row["kind"] = _text(record.get("kind") or "unknown")
    row["source"] = _text(record.get("source") or "daemon")
    row["detail"] = _detail({key: value for key, value in record.items() if key not in COLUMNS})
    return row


def from_row(row: Row) -> Record:
    """The JSON form that the control API gives; ``detail`` is an object again."""
    return {**row, "detail": json.loads(row["detail"])}
