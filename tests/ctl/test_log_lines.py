"""What people type as a moment, and log lines made readable: no daemon needed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from agentd.ctl import fields
from agentd.ctl.fields import Renderer, readable
from agentd.ctl.moment import moment
from agentd.errors import BadInput


@pytest.fixture(params=["UTC", "America/New_York", "Asia/Kolkata"])
def now(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """10 March 2026, 12:00:30 local time, in several zones (in one of them the clock was set forward on the 8th)."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield local("2026-03-10 12:00:30")
    monkeypatch.undo()
    time.tzset()


def local(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("03:14", "2026-03-10 03:14:00"),
        ("3:14:15", "2026-03-10 03:14:15"),
        ("12:00", "2026-03-10 12:00:00"),
        ("12:01", "2026-03-09 12:01:00"),
        ("23:59", "2026-03-09 23:59:00"),
        ("yesterday 03:14", "2026-03-09 03:14:00"),
        ("Yesterday", "2026-03-09 00:00:00"),
        ("today", "2026-03-10 00:00:00"),
        ("today 23:00", "2026-03-10 23:00:00"),
        ("10m", "2026-03-10 11:50:30"),
        ("1h30m ago", "2026-03-10 10:30:30"),
        ("now", "2026-03-10 12:00:30"),
        ("2026-03-01", "2026-03-01 00:00:00"),
        ("2026-03-01 03:14", "2026-03-01 03:14:00"),
        ("2026-03-01T03:14:15", "2026-03-01 03:14:15"),
    ],
)
def test_moments(now: float, text: str, expected: str) -> None:
    """In local time; a time of day is the last one that has been."""
    assert moment("--since", text, now) == local(expected)


def test_moments_with_a_zone_and_unix_seconds(now: float) -> None:
    """They say exactly what they mean, wherever one is."""
    assert moment("--since", "2026-03-01T03:14:15Z", now) == 1772334855.0
    assert moment("--since", "2026-03-01T03:14:15+05:30", now) == 1772334855.0 - 5.5 * 3600
    assert moment("--since", "@1772334855.5", now) == 1772334855.5
    assert moment("--since", None, now) is None


@pytest.mark.parametrize("text", ["", "soon", "25:00", "03:60", "2026-13-01", "@x", "-5m", "@nan", "@inf", "\x1b[31m"])
def test_what_is_no_moment_is_named(text: str) -> None:
    """The option, the text made harmless, and how to write it."""
    with pytest.raises(BadInput) as caught:
        moment("--until", text, 1e9)
    assert str(caught.value).startswith("--until: ")
    assert "\x1b" not in str(caught.value)
    assert "yesterday 03:14" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"level": "info", "event": "ready", "port": 80}', "ready  level=info port=80"),
        ('{"msg": "say \\"hi\\"", "who": "a b"}', 'say "hi"  who="a b"'),
        ('{"message": "only"}', "only"),
        ('{"n": 1}', '{"n": 1}'),
        ("{not json}", "{not json}"),
        ("plain", "plain"),
        ('["event"]', '["event"]'),
        ('{"event": "\\u001b[31mred\\u001b]0;x\\u0007", "k\\n": {"a": [1]}}', 'red\\x1b]0;x\\x07  k="{\\"a\\": [1]}"'),
        ('{"event": "half \\ud800"}', "half ?"),
    ],
)
def test_json_lines_show_their_message_first(text: str, shown: str) -> None:
    """No field is lost, and nothing in them reaches the terminal as a command."""
    assert readable(text, colour=False) == shown


def test_fields_are_dim_where_there_is_colour() -> None:
    """The message stands out."""
    assert readable('{"event": "ready", "n": 1}', colour=True) == "ready  \x1b[2mn=1\x1b[0m"


def test_a_stream_is_rendered_whatever_its_chunks() -> None:
    """Lines come out the same at every cut; a plain line that has no end yet is shown at once."""
    text = 'plain\n{"event": "é", "n": 1}\n\n  {"event": "b"}\n{oops\nlast \x1b[31mred'.encode()
    expected = "plain\né  n=1\n\nb\n{oops\nlast red"
    for size in (1, 2, 3, 7, 100):
        renderer = Renderer(colour=False)
        chunks = [text[at : at + size] for at in range(0, len(text), size)]
        shown = "".join(renderer.feed(chunk) for chunk in chunks) + renderer.feed(b"", final=True)
        assert shown == expected
    renderer = Renderer(colour=False)
    assert renderer.feed(b"loading 5 %") == "loading 5 %"
    assert renderer.feed(b" done\n{") == " done\n"


def test_a_long_line_is_not_held_back_for_ever() -> None:
    """What looks like JSON and never ends is shown as it is."""
    renderer = Renderer(colour=False)
    long = "{" + "x" * fields.LONGEST
    assert renderer.feed(long.encode()) == long
    assert renderer.feed(b"y\n" + json.dumps({"event": "next"}).encode() + b"\n") == "y\nnext\n"
