"""The final table: done, promised, measured. Readable without colour."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from chaos.scenario import Row

HEAD = ("", "done", "promised", "measured")


def show(rows: Sequence[Row], *, colour: bool | None = None) -> str:
    """The table as text."""
    paint = sys.stdout.isatty() if colour is None else colour
    lines, last = [], ""
    body = [(row.scenario, row.done, row.promised, row.measured) for row in rows]
    widths = [max(len(line[i]) for line in (HEAD, *body)) for i in range(4)]
    lines.append("     " + "  ".join(word.ljust(width) for word, width in zip(HEAD, widths, strict=True)).rstrip())
    for row, cells in zip(rows, body, strict=True):
        shown = ("" if row.scenario == last else row.scenario, *cells[1:])
        last = row.scenario
        mark = "ok  " if row.held else "FAIL"
        if paint and not row.held:
            mark = f"\033[31m{mark}\033[0m"
        lines.append(f"{mark} " + "  ".join(c.ljust(w) for c, w in zip(shown, widths, strict=True)).rstrip())
    return "\n".join(lines)
