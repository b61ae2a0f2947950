"""A unit that prints numbered lines without a pause, and the check that none of them is lost, torn or doubled."""

from __future__ import annotations

PRINTS = """[agent]
exec = ["python", "-uc", '''
import itertools, os, time
for n in itertools.count():
    os.write(1, f"{os.getpid()} line {n} {'x' * (n % 200)} end\\n".encode())
    time.sleep(0.001)
''']
"""


def check_lines(text: str) -> int:
    """Every line whole, in order, none lost or doubled; how many there are."""
    expected: dict[str, int] = {}
    lines = text.splitlines()
    for line in lines:
        pid, _, number, *_, end = line.split()
        assert end == "end", line
        assert int(number) == expected.get(pid, 0), line
        expected[pid] = int(number) + 1
    return len(lines)
