"""Tables of aligned columns that fit the terminal. Knows cells and widths, not what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentd.ctl.paint import Tone, cells, clip, paint

GAP = "  "
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Cell:
    """One value and its tone."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its title, and whether it stands to the right."""

    title: str
    right: bool = False


Row = Mapping[str, Cell]
ABSENT = Cell(NOTHING, "dim")
EMPTY = Cell("")


@dataclass(frozen=True, slots=True)
class Table:
    """Columns chosen for a width. ``head`` and ``line`` give the text of one line, padded and painted."""

    columns: Mapping[str, Column]
    widths: Mapping[str, int]
    colour: bool

    def head(self) -> str:
        """The line of titles."""
        return self.line({key: Cell(self.columns[key].title) for key in self.widths}, tone="dim")

    def line(self, row: Row, tone: Tone = "") -> str:
        """One row; ``tone`` is for cells that have none of their own."""
        parts = []
        for key, size in self.widths.items():
            cell = row.get(key, EMPTY)
            text = clip(cell.text, size)
            pad = " " * (size - cells(text))
            painted = paint(text, cell.tone or tone, self.colour)
            parts.append(pad + painted if self.columns[key].right else painted + pad)
        return GAP.join(parts).rstrip()


def fit(columns: Mapping[str, Column], layouts: Sequence[str], rows: Sequence[Row], width: int, colour: bool) -> Table:
    """The first layout (column keys in one string, widest layout first) whose natural width is at most ``width``.

    A column without any value is left out. Of the last layout the widest column is clipped.
    """
    used = {key for key in columns if any(row.get(key, ABSENT).text not in ("", NOTHING) for row in rows)}
    widths: dict[str, int] = {}
    for layout in layouts:
        widths = {key: _natural(columns[key], key, rows) for key in layout.split() if key in used}
        if _total(widths) <= width:
            return Table(columns, widths, colour)
    if widths:
        widest = max(widths, key=lambda key: widths[key])
        widths[widest] = max(4, widths[widest] - (_total(widths) - width))
    return Table(columns, widths, colour)


def plain_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[Cell | str]],
    width: int,
    colour: bool,
    right: frozenset[str] = frozenset(),
) -> list[str]:
    """A table of all its columns; the last one is clipped where it does not fit."""
    columns = {title: Column(title, title in right) for title in titles}
    body = [{t: c if isinstance(c, Cell) else Cell(c) for t, c in zip(titles, row, strict=True)} for row in rows]
    widths = {title: _natural(columns[title], title, body) for title in titles}
    last = titles[-1]
    widths[last] = max(8, min(widths[last], width - (_total(widths) - widths[last])))
    table = Table(columns, widths, colour)
    return [table.head(), *(table.line(row) for row in body)]


def _natural(column: Column, key: str, rows: Sequence[Row]) -> int:
    return max(len(column.title), *(cells(row.get(key, EMPTY).text) for row in rows), 0)


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + len(GAP) * max(0, len(widths) - 1)
