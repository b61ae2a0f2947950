"""Keys, inherited descriptors, configuration, notify."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.errors import ConfigError, Conflict
from agentd.wire import activation, config, key
from agentd.wire.notify import notify


def test_a_key_proves_unit_and_invocation() -> None:
    """Genuine keys verify; any change makes them worthless."""
    made = key.virtual_key(b"s" * 32, "writer@2", "0123456789abcdef")
    assert key.verify(b"s" * 32, made) == ("writer@2", "0123456789abcdef")
    assert key.verify(b"t" * 32, made) is None
    for forged in (made[:-1] + "0", made.replace("writer", "reader"), "sk-other", "agentd.v1.a", "agentd.v1.é.x.y"):
        assert forged == made or key.verify(b"s" * 32, forged) is None


def test_descriptors_are_inherited_by_name_and_only_by_the_addressee() -> None:
    """LISTEN_PID guards against a grandchild taking them."""
    code = """
import os
from agentd.wire import activation
memory = os.memfd_create("secret")
os.write(memory, b"hush")
if memory != 3:
    os.dup2(memory, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="secret")
fds = activation.inherited()
print(activation.read_secret(fds, "secret"), activation.read_secret(fds, "none"), "LISTEN_FDS" in os.environ)
os.environ.update(LISTEN_PID="1", LISTEN_FDS="1")
print(activation.inherited())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "b'hush' None False\n{}\n"


def test_a_taken_port_is_a_clear_conflict() -> None:
    """Which address, why, what to do."""
    with activation.listener({}, "http", "tcp:127.0.0.1:0") as first:
        port = first.getsockname()[1]
        with pytest.raises(Conflict, match=rf"tcp:127.0.0.1:{port}: cannot listen: Address already in use.*port 0"):
            activation.listener({}, "http", f"tcp:127.0.0.1:{port}")
    with pytest.raises(ConfigError, match="not a listening address"):
        activation.listener({}, "x", "carrier-pigeon")


def test_a_config_error_names_file_and_place(tmp_path: Path) -> None:
    """Never a traceback for a typing mistake."""
    bad = tmp_path / "agentd.toml"
    bad.write_text("[gateway\n")
    with pytest.raises(ConfigError, match=r"agentd.toml.*1"):
        config.read(bad)
    with pytest.raises(ConfigError, match=r"gone.toml: cannot be read: No such file"):
        config.read(tmp_path / "gone.toml")
    good = tmp_path / "a.json"
    good.write_text('{"a": 1}')
    assert config.read(good) == {"a": 1}


def test_notify_reaches_the_socket(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One datagram; False where nobody listens."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(short_dir / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(short_dir / "n"))
        assert notify("READY=1")
        assert sock.recv(100) == b"READY=1"
    assert not notify("READY=1")
