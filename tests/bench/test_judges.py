"""The bench's own judgements: a fault that is there is seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.fleet import Broken
from tests.bench import hang, lines, storm
from tests.bench.processes import Watched
from tests.bench.stamps import stamps


def lines_of(*numbers: int) -> bytes:
    return b"".join(b"w %d %s end\n" % (number, b"." * (number % 89)) for number in numbers)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (lines_of(0, 1, 2), {}),
        (lines_of(0, 2), {"lost": 1}),
        (lines_of(0, 1, 1, 2), {"duplicated": 1}),
        (lines_of(0, 1, 2).replace(b"w 1 ", b"w 1"), {"torn": 1, "lost": 1}),
        (lines_of(0, 1, 2)[:-1], {"torn": 1, "lost": 1}),
        (lines_of(0, 1), {"lost": 1}),
        (b"", {"lost": 3}),
    ],
)
def test_lost_doubled_and_torn_lines_are_counted(text: bytes, found: dict[str, int]) -> None:
    """A log that does not hold the lines 0, 1 and 2, each once and whole, is wrong by that much."""
    wrong = storm.judge(text, "w", 3)
    assert found == {key: number for key, number in wrong.items() if number and key != "of lines"}


def test_a_judgement_before_the_limit_is_negative() -> None:
    """Lateness counts from the last beat; who judges too early is seen, and who never judges is no success."""
    assert hang.late([10.0], [9.0, 10.9, 12.0]) == [pytest.approx(-100)]
    with pytest.raises(Broken):
        hang.late([10.0], [9.0])


def test_what_lives_is_left() -> None:
    """A process that lives is told as left, a dead one (even unreaped) is not."""
    with subprocess.Popen(["/bin/sleep", "60"]) as living, subprocess.Popen(["/bin/true"]) as dead:
        watched = Watched([living.pid, dead.pid])
        try:
            os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
            assert watched.alive() == [living.pid]
            watched.kill()
            assert watched.alive(5) == []
        finally:
            watched.close()


def test_a_stamp_is_the_programs_own_word(short_dir: Path) -> None:
    """The trivial program stamps itself, and silence fails."""
    with stamps(short_dir) as opened, subprocess.Popen(opened.trivial("some")) as process:
        stamp = opened.of("some", 10)
        process.kill()
        assert (stamp.name, stamp.pid) == ("some", process.pid)
        with pytest.raises(Broken):
            opened.next(0)


def test_a_missed_gate_is_false_and_a_report_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON line each; only a gate that is missed fails the bench."""
    assert not lines.print_line("a", 3.0, "ms", 1.0, "<= 2x", ok=False)
    assert lines.report("b", 3.0, "ms")
    row = {"measure": "a", "value": 3.0, "unit": "ms", "reference": 1.0, "ratio": 3.0, "target": "<= 2x", "ok": False}
    reported = {**row, "measure": "b", "reference": None, "ratio": None, "target": "reported", "ok": None}
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [row, reported]


def test_a_part_that_is_unknown_is_refused_by_name() -> None:
    """A misspelt BENCH= measures nothing and says what there is."""
    command = [sys.executable, "-m", "tests.bench", "supervision.restrat"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    assert "supervision.restart" in done.stderr
