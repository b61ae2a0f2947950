"""Finding a nats-server that is good enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentd.bus import server
from agentd.errors import HostCannot


def program(directory: Path, name: str, said: str, status: int = 0) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{said}'\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_the_packaged_server_is_found() -> None:
    """Without a wish the packaged one is taken, and it is new enough."""
    assert server.version(server.find())[:2] >= (2, 15)


def test_one_of_your_own(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is named is taken, by path or by name on PATH."""
    path = program(short_dir, "my-nats", "nats-server: v2.16.3")
    assert server.find(str(path)) == path
    monkeypatch.setenv("PATH", f"{short_dir}:/bin:/usr/bin")
    assert server.find("my-nats") == path


@pytest.mark.parametrize(
    ("said", "status", "text"),
    [
        ("nats-server: v2.14.9", 0, "2.14.9"),
        ("hello", 0, "does not look like"),
        ("nats-server: v2.15.0", 1, "does not"),
    ],
)
def test_a_bad_one_is_refused(short_dir: Path, said: str, status: int, text: str) -> None:
    """Too old, or something else: HostCannot says which and what to do."""
    path = program(short_dir, "nats-server", said, status)
    with pytest.raises(HostCannot, match=text) as caught:
        server.find(str(path))
    assert "agentd.toml" in (caught.value.hint or "")


def test_a_missing_or_broken_one_is_refused(short_dir: Path) -> None:
    """Nothing there, nothing by that name, or not executable."""
    (short_dir / "text").write_text("no program")
    for named in (str(short_dir / "none"), "no-such-nats-server", str(short_dir / "text")):
        with pytest.raises(HostCannot):
            server.find(named)
