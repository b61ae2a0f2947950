"""agentctl on a terminal (a pseudo-terminal), following a log, and how light it starts."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ctl.stand_in import StandIn

FOLLOW = "GET /v1/units/writer/logs?lines=100&follow=1"


def command(daemon: StandIn, *args: str) -> list[str]:
    return [sys.executable, "-m", "agentd.ctl.main", "--socket", str(daemon.path), *args]


def on_terminal(argv: list[str], **env: str) -> str:
    """What the program writes on a terminal of 100 columns."""
    main, other = pty.openpty()
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(argv, stdout=other, env=clean | {"COLUMNS": "100", "TERM": "xterm"} | env) as process:
        os.close(other)
        shown = b""
        while chunk := _read(main):
            shown += chunk
        os.close(main)
        process.wait(10)
    return shown.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side is closed
        return b""


def test_colour_is_for_terminals_and_no_color_is_respected(daemon: StandIn) -> None:
    """On a terminal hung is red; with NO_COLOR there is no escape at all, and the words are the same."""
    assert "\x1b[31mhung\x1b[0m" in on_terminal(command(daemon, "status"))
    plain = on_terminal(command(daemon, "status"), NO_COLOR="1")
    assert "\x1b" not in plain
    assert "hung" in plain
    assert "\x1b" not in on_terminal(command(daemon, "status"), TERM="dumb")


def test_logs_on_a_terminal_are_harmless(daemon: StandIn) -> None:
    """An escape sequence of an agent, even cut in two, never reaches the terminal."""
    chunks = [b"\x1b]0;evil\x07ok \x1b[3", b"1mred\x1b[0m\nlast"]
    daemon.answers["GET /v1/units/writer/logs?lines=100&follow=0"] = (200, chunks)
    assert on_terminal(command(daemon, "logs", "writer")) == "\\x1b]0;evil\\x07ok red\nlast"


def test_json_lines_on_a_terminal_are_readable(daemon: StandIn) -> None:
    """The message first, the other fields dim behind it, and nothing in them is a command to the terminal."""
    line = b'{"level": "info", "event": "done \\u001b]0;evil\\u0007", "n": 1}\n'
    daemon.answers["GET /v1/units/writer/logs?lines=100&follow=0"] = (200, [line[:9], line[9:]])
    shown = on_terminal(command(daemon, "logs", "writer"))
    assert shown == "done \\x1b]0;evil\\x07  \x1b[2mlevel=info n=1\x1b[0m\n"


@pytest.fixture
def enough() -> Iterator[threading.Event]:
    """Set when the stand-in may end its stream."""
    event = threading.Event()
    yield event
    event.set()


def test_follow_prints_each_line_as_it_comes_until_ctrl_c(daemon: StandIn, enough: threading.Event) -> None:
    """A line is there while the stream is still open; Ctrl-C ends it without a word."""

    def lines() -> Iterator[bytes]:
        yield b"first\n"
        enough.wait(30)

    daemon.answers[FOLLOW] = (200, lines())
    argv = command(daemon, "logs", "writer", "-f")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"first\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert b"Traceback" not in process.stderr.read()


def test_follow_ends_when_the_daemon_goes(daemon: StandIn, short_dir: Path) -> None:
    """The end of the stream is the end of the command."""
    daemon.answers[FOLLOW] = (200, [b"a\n", b"b\n"])
    done = subprocess.run(command(daemon, "logs", "-f", "writer"), capture_output=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, b"a\nb\n")


def test_status_starts_light(daemon: StandIn) -> None:
    """What a person waits for: no rich, no pydantic, no asyncio is imported to show the fleet."""
    argv = [sys.executable, "-X", "importtime", *command(daemon, "status")[1:]]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    imported = {text.rsplit("|", 1)[-1].strip().split(".")[0] for text in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "agentd" in imported
    assert not imported & {"rich", "pydantic", "pydantic_core", "asyncio", "aiohttp"}
