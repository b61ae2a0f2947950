"""No cell of the fault matrix is forgotten: a missing one is a failing test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.matrix import BAD_INPUT, COLUMNS, MOMENTS, ROWS, Cell, listing, missing

HERE = Path(__file__).parent
LISTING = HERE / "MATRIX.md"
COLLECT = """
import json, sys
import pytest

class Cells:
    def pytest_collection_finish(self, session):
        marks = [(item.path.stem, item.name, mark) for item in session.items for mark in item.iter_markers()]
        found = [(file, name, mark.name, mark.args) for file, name, mark in marks if mark.name in ("cell", "bad_input")]
        print("CELLS" + json.dumps(found))

pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[Cells()])
"""


@dataclass
class Proven:
    """The names of the tests that prove each cell, and each kind of bad input."""

    cells: dict[Cell, list[str]] = field(default_factory=dict)
    bad: dict[str, list[str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def proven() -> Proven:
    """What the markers say."""
    argv = [sys.executable, "-c", COLLECT, *(str(HERE.parent / room) for room in ("faults", "keeper", "host"))]
    run = subprocess.run(argv, capture_output=True, text=True, cwd=HERE.parents[1], timeout=60)
    line = next(line for line in run.stdout.splitlines() if line.startswith("CELLS"))
    found = Proven()
    for file, name, mark, args in json.loads(line.removeprefix("CELLS")):
        test = name.partition("[")[0]
        if mark == "bad_input":
            for kind in args:
                found.bad.setdefault(kind, []).append(test)
            continue
        column, moments = args
        assert column in COLUMNS
        assert set(moments) <= set(MOMENTS)
        for moment in moments:
            found.cells.setdefault((file, column, moment), []).append(test)
    return found


def test_every_unit_cell_has_a_test(proven: Proven) -> None:
    """Each fault, at each moment that applies to it; and no cell is claimed of a row that is not in the matrix."""
    assert missing(proven.cells) == []
    assert {file for file, _, _ in proven.cells} == {row.file for row in ROWS}


def test_every_kind_of_bad_input_has_a_test(proven: Proven) -> None:
    """The list is complete, and names nothing else."""
    assert set(proven.bad) == set(BAD_INPUT)


def test_a_cell_without_a_test_is_found(proven: Proven) -> None:
    """The check can fail: without the tests of one cell it names that cell."""
    cell = ("test_agent_killed", "unit", "P")
    assert missing({key: tests for key, tests in proven.cells.items() if key != cell}) == [cell]


def test_the_listing_is_true(proven: Proven) -> None:
    """MATRIX.md names the tests that there are. AGENTD_GOLDEN=write makes it anew."""
    text = listing(proven.cells, proven.bad)
    if os.environ.get("AGENTD_GOLDEN") == "write":
        LISTING.write_text(text)
    assert text == LISTING.read_text()
