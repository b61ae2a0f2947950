"""The fault matrix as this repository promises it: rows (a file each), columns, moments, and which cells are proven.

A cell is a test with the marker ``cell(column, moments)``. ``test_matrix.py`` fails where one of the unit column has
none, and keeps MATRIX.md, the listing for people.
"""

from __future__ import annotations

from dataclasses import dataclass

MOMENTS = {
    "I": "the unit is idle",
    "M": "it holds a message, no model call",
    "S": "its model call streams",
    "H": "the hold is written, the provider has not answered",
    "P": "it is being spawned or stopped",
}
COLUMNS = ("unit", "message", "ledger")


@dataclass(frozen=True)
class Row:
    """One fault. ``unit`` are the moments of the unit column that apply: each needs a test."""

    file: str
    fault: str
    unit: str
    promise: str


ROWS = (
    Row(
        "test_agent_killed",
        "agent kill -9",
        "IMSHP",
        "restarted at once (P: start counted once); whole tree gone first",
    ),
    Row("test_agent_stopped", "agent stopped by our SIGTERM", "IMSHP", "clean stop, no failure counted"),
    Row("test_agent_left", "agent exits 0 unasked while it holds a message", "MSH", "by policy"),
    Row("test_agent_stands_still", "agent SIGSTOP or busy loop", "IMSHP", "hung within its limit; on_hang done"),
    Row(
        "test_agent_no_progress",
        "agent beats, no progress on its message",
        "MSH",
        "hung by progress or deadline; not if a model call moves",
    ),
    Row(
        "test_daemon_killed",
        "daemon kill -9",
        "IMSHP",
        "untouched; watchdog, restart counters, held, timers go on; deaths meanwhile handled with their status",
    ),
    Row(
        "test_daemon_absent",
        "daemon absent (not running, SIGSTOP)",
        "IMSHP",
        "keeps working; deaths wait for the daemon",
    ),
    Row(
        "test_keeper_killed",
        "keeper kill -9",
        "IMSHP",
        "agents live; adopted, none twice; no EPIPE; exit statuses in between known where the kernel tells",
    ),
    Row("test_keeper_upgraded", "keeper upgraded in place", "IMSHP", "untouched"),
    Row("test_log_disk_full", "log disk full", "IMSHP", "untouched; dropped bytes counted and shown"),
    Row(
        "test_neighbour_stopped",
        "daemon, router, gateway or nats-server SIGSTOPped",
        "IMSHP",
        "found hung within 3 s, killed, restarted; meanwhile nobody blocks on it",
    ),
)

BAD_INPUT = (
    "notify flood",
    "garbage",
    "1 MB in one datagram",
    "exits before exec",
    "exits during start",
    "exits while stopping",
    "ignores SIGTERM",
    "unreachable interpreter, cwd or file",
    "pid reuse",
    "two daemons",
    "two keepers",
    "keeper of another version",
)
"""What children, and those who start us, may do wrong; a test with the marker ``bad_input`` proves each harmless."""

Cell = tuple[str, str, str]
"""File, column, moment."""


def missing(proven: dict[Cell, list[str]]) -> list[Cell]:
    """The cells of the unit column that no test proves."""
    wanted = [(row.file, "unit", moment) for row in ROWS for moment in row.unit]
    return [cell for cell in wanted if not proven.get(cell)]


def listing(proven: dict[Cell, list[str]], bad: dict[str, list[str]]) -> str:
    """MATRIX.md: a section for each row, a line for each cell that is proven; then bad input."""
    lines = ["# The fault matrix, as tests prove it", "", "Made by `test_matrix.py` from the tests' markers."]
    lines += ["", *(f"- **{letter}**: {text}" for letter, text in MOMENTS.items())]
    for row in ROWS:
        lines += [
            "",
            f"## {row.fault}",
            "",
            f"Unit: {row.promise}. `{row.file}.py`",
            "",
            "| cell | tests |",
            "|---|---|",
        ]
        for column in COLUMNS:
            for moment in MOMENTS:
                if tests := proven.get((row.file, column, moment)):
                    lines.append(f"| {column} {moment} | {', '.join(sorted(set(tests)))} |")
    lines += ["", "## Bad input", "", "| what | tests |", "|---|---|"]
    lines += [f"| {name} | {', '.join(sorted(set(bad.get(name, []))))} |" for name in BAD_INPUT]
    return "\n".join(lines) + "\n"
