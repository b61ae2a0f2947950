"""The gateway as a process of agentd: what it inherits, what it says, and what it keeps to itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest

from agentd.errors import ConfigError
from agentd.gateway.config import Secret, build
from agentd.wire.facts import Client
from agentd.wire.key import virtual_key
from tests.gateway.rig import NEWEST, REAL_KEY, SECRET, ask, fake_upstream, rig, unit_fact
from tests.waiting import until

# what the keeper does: descriptors 3.. announced by LISTEN_FDS, in the order of their names
SPAWN = """
import os, sys
names, config = sys.argv[1], sys.argv[2]
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names.split(":"))), LISTEN_FDNAMES=names)
os.execv(sys.executable, [sys.executable, "-m", "agentd.gateway.main", "--config", config])
"""


async def test_it_serves_on_what_it_inherits_and_tells_its_supervisor(short_dir: Path) -> None:
    """Listeners, boot secret and real key come as descriptors; READY and WATCHDOG go out; SIGTERM ends it cleanly."""
    (short_dir / "facts").mkdir()
    beats = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    beats.bind(str(short_dir / "notify"))
    beats.setblocking(False)
    http = socket.create_server(("127.0.0.1", 0))
    facts = socket.socket(socket.AF_UNIX)
    facts.bind(str(short_dir / "facts/gateway.sock"))
    facts.listen()
    secrets = {}
    for name, text in (("secret", SECRET), ("key-openai", REAL_KEY.encode())):
        secrets[name] = os.memfd_create(name)
        os.write(secrets[name], text)
    upstream = {"name": "openai", "dialect": "openai", "base_url": "http://127.0.0.1:1/v1", "secret": "key-openai"}
    config = short_dir / "gateway.json"
    own = {"runtime": str(short_dir), "state": str(short_dir / "state"), "listen": "127.0.0.1:4180"}
    config.write_text(json.dumps({**own, "uids": [4242], "upstream": [{**upstream, "models": ["gpt"]}], "fleet": {}}))
    order = [("http", http.fileno()), ("facts", facts.fileno()), *secrets.items()]
    kept = [os.dup(fd) for _, fd in order]
    script = "import os,sys;[os.dup2(int(f),3+i) for i,f in enumerate(sys.argv[3].split(','))];" + SPAWN
    high = [os.dup2(fd, 60 + i, inheritable=True) for i, fd in enumerate(kept)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        ":".join(name for name, _ in order),
        str(config),
        ",".join(map(str, high)),
        pass_fds=high,
        env={**os.environ, "NOTIFY_SOCKET": str(short_dir / "notify")},
    )
    address = http.getsockname()
    for fd in [*kept, *high, *secrets.values()]:
        os.close(fd)
    http.close()
    facts.close()
    loop = asyncio.get_running_loop()
    link = None
    try:
        said = await asyncio.wait_for(loop.sock_recv(beats, 4096), 15)
        while b"READY=1" not in said:
            said = await asyncio.wait_for(loop.sock_recv(beats, 4096), 15)
        assert b"WATCHDOG=1" in await asyncio.wait_for(loop.sock_recv(beats, 4096), 5)
        headers = {"authorization": f"Bearer {virtual_key(SECRET, 'a', NEWEST)}"}
        url = f"http://127.0.0.1:{address[1]}/v1"
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.post(f"{url}/chat/completions", json=ask(model="dry-run")) as response:
                assert response.status == 200
            async with session.post(f"{url}/chat/completions", json=ask(model="gpt")) as response:
                assert (response.status, REAL_KEY in await response.text()) == (503, False)
        client = Client(short_dir / "facts/gateway.sock", "daemon")
        link = asyncio.create_task(client.run())
        await until(lambda: client.facts.get("listen") == {"address": f"127.0.0.1:{address[1]}"})
        await until(lambda: client.facts.get("unit/a", {}).get("limit") == 2_000_000, what="the default limit")
        assert REAL_KEY not in json.dumps(client.facts)
    finally:
        if link is not None:
            link.cancel()
            await asyncio.gather(link, return_exceptions=True)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        beats.close()


async def test_a_port_that_is_taken_is_one_clear_error(short_dir: Path) -> None:
    """The address, what is wrong and what to do; no traceback, and the ledger is as it was."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = short_dir / "gateway.json"
        own = {"listen": address, "state": str(short_dir), "ollama": "http://127.0.0.1:1"}
        config.write_text(json.dumps({**own, "key": [{"key": "k", "unit": "a"}]}))
        command = (sys.executable, "-m", "agentd.gateway.main", "--config", str(config))
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, said = await asyncio.wait_for(process.communicate(), 15)
    assert process.returncode == 1
    assert said.decode().startswith(f"agentd-gateway: tcp:{address}: cannot listen")
    assert b"Traceback" not in said


async def test_the_real_key_is_nowhere_but_upstream(short_dir: Path) -> None:
    """Not in facts, records, log, ledger or answers; and the process cannot be dumped."""
    async with fake_upstream() as upstream, rig(short_dir, upstream, a=unit_fact(50_000)) as house:
        _, headers, text = await house.post(ask())
        await until(lambda: house.kinds("call.ended"))
        told = json.dumps(house.gateway.facts) + json.dumps(house.records) + house.log() + house.ledger.read_text()
        assert upstream.headers[0]["authorization"] == f"Bearer {REAL_KEY}"
        assert REAL_KEY not in told + text + str(headers)
        assert house.process is not None
        # of a process that cannot be dumped, /proc belongs to root; and a peer of the same uid is kept out of it
        assert Path(f"/proc/{house.process.pid}/environ").stat().st_uid == 0
        if os.geteuid() != 0:
            with pytest.raises(PermissionError):
                Path(f"/proc/{house.process.pid}/environ").read_bytes()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"listn": "x"}, "did you mean 'listen'"),
        ({"upstream": [{"name": "x", "dialect": "openia"}]}, "dialect"),
        ({"upstream": [{"name": "x", "dialect": "openai", "base_url": "ftp://x"}]}, "base_url"),
        ({"upstream": [{"name": "x", "dialect": "openai", "base_url": "http://u:pw@x"}]}, "password"),
        ({"upstream": [{"name": "x", "dialect": "openai", "key_env": "NO_SUCH"}]}, "no api key"),
        ({"upstream": [{"name": "x", "dialect": "openai", "api_key": "sk"}]}, "no key 'api_key'"),
        ({"upstream": [{"name": "x", "dialect": "dry-run"}] * 2}, "same name"),
        ({"key": [{"key": "k", "unit": "u", "tokens": "50k/fortnight"}]}, "fortnight"),
        ({"key": [{"key": "k"}]}, "a key and a unit"),
        ({"fleet": {"tokens": True}}, "tokens"),
        ({"listen": 4180}, "listen must be text"),
        ({"listen": "localhost"}, "not host:port"),
        ({"fleet": {"usd": "5/day"}}, "no key 'usd'"),
    ],
    ids=range(13),
)
def test_a_wrong_configuration_is_one_clear_error(table: dict[str, object], said: str) -> None:
    """Each names the key and what is wrong; no setting is accepted and ignored."""
    with pytest.raises(ConfigError) as caught:
        build(table, {})
    assert said in str(caught.value).lower()


def test_errors_of_the_gateway_can_cross_a_socket() -> None:
    """Each is built from a message alone, as the reader of a socket does with every class that it knows."""
    from agentd.errors import NoSuchUnit, from_wire
    from agentd.gateway import surface  # noqa: F401 - all classes of the gateway are known from here on

    assert isinstance(from_wire(NoSuchUnit("x").to_wire()), NoSuchUnit)


def test_a_secret_prints_as_stars() -> None:
    """Not by repr, str or format."""
    secret = Secret(REAL_KEY)
    assert REAL_KEY not in f"{secret} {secret!r} {[secret]}"
