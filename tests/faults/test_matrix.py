"""No cell of the fault matrix is forgotten: a missing one is a failing test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.matrix import COLUMNS, MOMENTS, ROWS, Cell, listing, missing

HERE = Path(__file__).parent
LISTING = HERE / "MATRIX.md"
COLLECT = """
import json, sys
import pytest

class Cells:
    def pytest_collection_finish(self, session):
        found = []
        for item in session.items:
            if item.get_closest_marker("skip") is None:
                found += [(item.path.stem, *mark.args, item.name) for mark in item.iter_markers("cell")]
        print("CELLS" + json.dumps(found))

pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", sys.argv[1]], plugins=[Cells()])
"""


@pytest.fixture(scope="module")
def proven() -> dict[Cell, list[str]]:
    """The names of the tests that prove each cell."""
    argv = [sys.executable, "-c", COLLECT, str(HERE)]
    run = subprocess.run(argv, capture_output=True, text=True, cwd=HERE.parents[1], timeout=60)
    line = next(line for line in run.stdout.splitlines() if line.startswith("CELLS"))
    cells: dict[Cell, list[str]] = {}
    for file, column, moments, name in json.loads(line.removeprefix("CELLS")):
        assert column in COLUMNS
        for moment in moments:
            assert moment in MOMENTS
            cells.setdefault((file, column, moment), []).append(name.partition("[")[0])
    return cells


def test_every_unit_cell_has_a_test(proven: dict[Cell, list[str]]) -> None:
    """Each fault, at each moment that applies to it; and no cell is claimed of a row that is not in the matrix."""
    assert missing(proven) == []
    assert {file for file, _, _ in proven} == {row.file for row in ROWS}


def test_a_cell_without_a_test_is_found(proven: dict[Cell, list[str]]) -> None:
    """The check can fail: without the tests of one cell it names that cell."""
    cell = ("test_agent_killed", "unit", "P")
    assert missing({key: tests for key, tests in proven.items() if key != cell}) == [cell]


def test_the_listing_is_true(proven: dict[Cell, list[str]]) -> None:
    """MATRIX.md names the tests that there are. AGENTD_GOLDEN=write makes it anew."""
    text = listing(proven)
    if os.environ.get("AGENTD_GOLDEN") == "write":
        LISTING.write_text(text)
    assert text == LISTING.read_text()
