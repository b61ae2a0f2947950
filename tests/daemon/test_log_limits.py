"""``[logs]`` in agentd.toml: each key is honoured for every unit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.daemon import config
from agentd.errors import ConfigError
from chaos.fleet import CONFIG, DRY_RUN, Fleet
from tests.fleet import fleet
from tests.waiting import wait_until


def counting(most: int, then: str) -> str:
    """A unit that does this so many times, with the number as $i, and stays."""
    script = f"i=0; while [ $i -lt {most} ]; do i=$((i+1)); {then}; done; exec sleep 1000"
    return f"[agent]\nexec = ['sh', '-c', '''{script}''']\n"


LOUD = counting(2000, "echo line $i of this")
WIDE = counting(50, 'printf "%0200d tick\\n" $i; sleep 0.05')
SLOW = '[agent]\nexec = ["sh", "-c", "while :; do echo tick; sleep 0.05; done"]\n'


@pytest.fixture
def house(short_dir: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with fleet(
        short_dir, {"loud": LOUD, "slow": SLOW, "wide": WIDE}, CONFIG + f"[logs]\n{request.param}\n" + DRY_RUN
    ) as running:
        yield running


def files(house: Fleet, unit: str) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in (house.state / "log").glob(f"{unit}.log*") if p.suffix != ".idx"}


@pytest.mark.parametrize("house", ['max_size = "4k"\nkeep = 3'], indirect=True)
def test_size_and_count_and_times_over_rotations(house: Fleet) -> None:
    """No file is larger than max_size, no more than keep are kept beside the present one, and time goes through all."""
    wait_until(lambda: "line 2000" in house.log_of("loud"), 10)
    found = files(house, "loud")
    assert found.pop("loud.log") <= 4096
    assert found == {f"loud.log.{number}": 4096 for number in (1, 2, 3)}
    what_was_printed_then(house)


@pytest.mark.parametrize("house", ['max_age = "200ms"'], indirect=True)
def test_age(house: Fleet) -> None:
    """A file whose beginning is older than max_age is rotated though it is small."""
    wait_until(lambda: "slow.log.1" in files(house, "slow"), 10)
    assert files(house, "slow")["slow.log.1"] < 4096


def agentctl(house: Fleet, *arguments: str) -> str:
    argv = [sys.executable, "-m", "agentd.ctl.main", "--socket", str(house.runtime / "control.sock"), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout


def what_was_printed_then(house: Fleet) -> None:
    """What --since and --until find is what the times in --json say."""
    wait_until(lambda: "0050 tick" in house.log_of("wide"), 10)
    assert len(files(house, "wide")) == 3
    told = [json.loads(line) for line in agentctl(house, "logs", "wide", "--json").splitlines()]
    ats = [line["at"] for line in told]
    assert len(ats) == 50
    assert ats == sorted(ats)
    assert ats[-1] - ats[0] > 2
    begin, end = ats[10], ats[45]
    found = agentctl(house, "logs", "wide", "--since", f"@{begin!r}", "--until", f"@{end!r}", "--json").splitlines()
    assert [json.loads(line)["at"] for line in found] == [at for at in ats if begin <= at <= end]
    assert agentctl(house, "logs", "wide", "--until", "2001-01-01") == ""
    both = agentctl(house, "logs", "wide", "loud", "-t", "--since", "1h", "--grep", "tick|line 2000 ").splitlines()
    assert [line.split()[2] for line in both].count("wide") == 50
    assert [line.split()[2] for line in both].count("loud") == 1
    assert both == sorted(both, key=lambda line: line[:23])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('max_size = "lots"', "is not a size"),
        ('max_size = "1k"', "at least 4096"),
        ("keep = 0", "at least 1"),
        ("keep = 101", "at most 100"),
        ('max_age = "soon"', "is not a duration"),
        ("max_sise = 5", "Did you mean max_size?"),
    ],
)
def test_wrong_limits_are_named(tmp_path: Path, line: str, said: str) -> None:
    """With file and line, before anything is started."""
    file = tmp_path / "agentd.toml"
    file.write_text(f"[logs]\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    assert f"{file}:2: [logs] {line.split(maxsplit=1)[0]}" in str(caught.value)
    assert said in f"{caught.value} {caught.value.hint}"
