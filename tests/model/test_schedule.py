"""Schedules by themselves: what is due, what was missed, and what a unit file may say."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings

from agentd.errors import UnitFileError
from agentd.model import due, reading, schedule
from agentd.model.due import Agenda
from agentd.model.life import Now, Policy
from agentd.model.schedule import Schedule
from agentd.model.verify import verify
from tests.model.schedule_laws import Table, Turn, schedule_law, worlds

BERLIN = ZoneInfo("Europe/Berlin")


def unit(line: str, more: str = "") -> str:
    """A unit file."""
    return f'[agent]\nexec = ["true"]\nschedule = {line}\n{more}'


def at(text: str) -> float:
    """Unix seconds of a time in Berlin."""
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


def dues(cron: str, after: str, count: int) -> list[str]:
    """The next due times in Berlin, in words."""
    asked, moment, found = Schedule(cron=cron, timezone="Europe/Berlin"), at(after), []
    for _ in range(count):
        then = schedule.cron_due(asked, moment)
        assert then is not None
        moment = then
        found.append(datetime.fromtimestamp(then, BERLIN).strftime("%m-%d %H:%M %Z"))
    return found


@settings(derandomize=True, max_examples=300, deadline=None, database=None)
@given(worlds())
def test_laws(world: tuple[Table, list[Turn]]) -> None:
    """Whatever the clocks, the host and the daemon do: never two for one due time, monotone, missed by policy."""
    schedule_law(due, world)


def test_a_time_that_the_day_does_not_have_is_run_right_after_the_gap() -> None:
    """As Debian's cron: 02:30 on the night in which 02:00 becomes 03:00."""
    assert dues("30 2 * * *", "2026-03-28T12:00", 2) == ["03-29 03:00 CEST", "03-30 02:30 CEST"]


def test_a_time_that_the_day_has_twice_is_run_once() -> None:
    """As Debian's cron; while every quarter of an hour goes on through both."""
    assert dues("30 2 * * *", "2026-10-24T12:00", 2) == ["10-25 02:30 CEST", "10-26 02:30 CET"]
    expected = ["10-25 02:00 CEST", "10-25 02:30 CEST", "10-25 02:00 CET", "10-25 02:30 CET", "10-25 03:00 CET"]
    assert dues("*/30 * * * *", "2026-10-25T01:45", 5) == expected


def test_beginning_within_the_hour_that_comes_twice_finds_only_what_is_to_come() -> None:
    """A schedule that is set up in the second of the two hours does not name a moment of the first."""
    second = datetime(2026, 10, 25, 1, 20, tzinfo=UTC).timestamp()
    found = schedule.cron_due(Schedule(cron="45 2 * * *", timezone="Europe/Berlin"), second)
    assert found == at("2026-10-26T02:45")


def test_jitter_is_the_same_each_time_and_bounded() -> None:
    """A daemon that comes back finds the moment that the last one had; units differ; no run meets the next."""
    drawn = [due.jitter("unit", n, 30.0) for n in range(1000)]
    assert drawn == [due.jitter("unit", n, 30.0) for n in range(1000)]
    assert all(0 <= one < 30 for one in drawn)
    assert len(set(drawn)) == 1000
    assert 13 < sum(drawn) / 1000 < 17
    assert due.jitter("other", 1.0, 30.0) != due.jitter("unit", 1.0, 30.0)
    asked = Schedule(cron="* * * * *", jitter=86400)
    agenda = Agenda(base=0.0, mono=0.0)
    for minute in range(0, 6000, 60):
        begins = due.begins("unit", asked, Agenda(base=float(minute), mono=0.0))
        assert begins is not None
        assert minute + 60 <= begins < minute + 120
    assert due.judge("unit", asked, agenda, Now(0.0, 59.0, 0.0)) is None


def test_a_year_away_is_one_run_and_soon_found() -> None:
    """Nobody counts half a million missed minutes one by one."""
    asked = Schedule(cron="* * * * *")
    verdict = due.judge("unit", asked, Agenda(base=0.0, mono=0.0), Now(0.0, 365 * 86400.0 + 7, 0.0))
    assert verdict is not None
    assert (verdict.due, verdict.late, verdict.run) == (365 * 86400.0, 7.0, True)
    assert verdict.missed == due.COUNTED


def test_a_clock_that_was_wrong_by_weeks_does_not_silence_the_schedule() -> None:
    """A day back is taken as it is: nothing is run twice. What is further off was a wrong clock."""
    day = Agenda(base=86400.0 * 10, mono=0.0, boot="b")
    assert due.here(day, Now(0.0, 86400.0 * 9, 0.0), "b") is day
    assert due.here(day, Now(0.0, 86400.0 * 3, 0.0), "b").base == 86400.0 * 3


@pytest.mark.parametrize("text", ["every 5m", "0 3 * * 1-5", "@daily", "*/10 8-18 * JAN-MAR MON,FRI", "0 4 L * *"])
def test_short_forms(text: str) -> None:
    """A text stands for the table with nothing but that."""
    found = reading.parse(unit(f'"{text}"'), "u", "u.toml").agent.schedule
    assert found is not None
    assert found == (Schedule(every=300.0) if text == "every 5m" else Schedule(cron=text))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('"0 25 * * *"', "'0 25 * * *': the hour '25' is not right; it takes 0-23, such as 3 or 8-18."),
        ('"0 3 * *"', "'0 3 * *' has 4 fields; cron has five (minute, hour, day-of-month, month, day-of-week), "),
        ('"x 3 * * *"', "'x 3 * * *': the minute 'x' is not right; it takes 0-59, such as 30 or */15."),
        ('"0 0 31 2 *"', "'0 0 31 2 *': the day-of-month '31' is not right; it takes 1-31 or L (the last), in "),
        ('"@reboot"', "'@reboot' is none of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually."),
        ('"every 0s"', 'every 0s is too often: a second at least, such as "every 5m".'),
        ('"every now and then"', "'now and then' is not a duration; write for example \"30s\", \"5m\" or \"500ms\"."),
        ('{ every = "5m", cron = "0 3 * * *" }', "a schedule has either cron or every: "),
        ('{ jitter = "5m" }', "a schedule has either cron or every: "),
        ('{ cron = "0 3 * * *", timezone = "Europe/Berln" }', "'Europe/Berln' is no time zone of this host; "),
        ('{ every = "5m", timezone = "Europe/Berlin" }', "timezone belongs to cron: "),
        ('{ every = "5m", missed = "all" }', "missed: expected one of once, skip"),
        ('{ evry = "5m" }', "evry: no such key."),
        ("5", "5 is no schedule; write "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(line: str, said: str) -> None:
    """The field, what it takes, and an example; at the line where it stands."""
    with pytest.raises(UnitFileError) as caught:
        reading.parse(unit(line), "u", "u.toml")
    assert f"u.toml:3: [agent] schedule: {said}" in str(caught.value)


def test_combinations_that_cannot_be_meant() -> None:
    """A run that never ends, and a unit that waits for one that is there only now and then, are refused."""
    files = {
        "job": unit('"@daily"'),
        "always": unit('"@daily"', '[restart]\npolicy = "always"\n'),
        "needs": '[agent]\nexec = ["true"]\nrequires = ["job"]\n',
        "bound": '[agent]\nexec = ["true"]\nbinds_to = ["job"]\n',
        "later": '[agent]\nexec = ["true"]\nafter = ["job"]\n',
        "wild": unit('{ every = "5m", jitter = "10m" }'),
    }
    found = verify({name: reading.parse(text, name, f"{name}.toml") for name, text in files.items()})
    assert {(f.unit, f.key, f.severity) for f in found} == {
        ("always", "[restart] policy", "error"),
        ("needs", "[agent] requires", "error"),
        ("bound", "[agent] binds_to", "error"),
        ("later", "[agent] after", "error"),
        ("wild", "[agent] schedule", "warning"),
    }


def test_a_run_is_over_when_it_ends() -> None:
    """The default policy would start a run again and again; on-failure is honoured."""
    assert Policy.of(reading.parse(unit('"@daily"'), "u", "u.toml")).restart == "never"
    tried = reading.parse(unit('"@daily"', '[restart]\npolicy = "on-failure"\n'), "u", "u.toml")
    assert Policy.of(tried).restart == "on-failure"


def test_what_is_remembered_reads_back() -> None:
    """Also what a neighbouring version wrote, which knows more or less."""
    agenda = Agenda(base=5.0, mono=6.0, boot="b", runs=3)
    assert Agenda.from_json({**agenda.to_json(), "novel": 1}) == agenda
    assert Agenda.from_json({"base": 5.0, "mono": 6.0}) == Agenda(base=5.0, mono=6.0)
