"""The control API over a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentd.api import server as module
from agentd.api.server import Server, serve
from agentd.daemon import logs
from agentd.daemon.ports import Actor
from agentd.errors import BadInput, Conflict, HostCannot
from tests.api.fleet import Fleet, as_control
from tests.waiting import until

ASK = """
import json, os, socket, sys
path, uid = sys.argv[1], int(sys.argv[2])
if uid:
    os.setgid(uid)
    os.setuid(uid)
sock = socket.socket(socket.AF_UNIX)
sock.connect(path)
sock.sendall(b"GET /v1/status HTTP/1.1\\r\\nHost: agentd\\r\\nConnection: close\\r\\n\\r\\n")
answer = b""
while chunk := sock.recv(65536):
    answer += chunk
print(answer.split()[1].decode(), answer.partition(b"\\r\\n\\r\\n")[2].decode())
"""


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def server(fleet: Fleet, short_dir: Path) -> AsyncIterator[Server]:
    running = await serve(as_control(fleet), short_dir / "control.sock")
    yield running
    await running.close()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(server.path))
    async with httpx.AsyncClient(transport=transport, base_url="http://agentd", timeout=5) as http:
        yield http


async def ask_as_child(path: Path, uid: int = 0) -> tuple[int, dict[str, Any]]:
    """The same question from another process, as another user where uid is not 0."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ASK, str(path), str(uid), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(child.communicate(), 10)
    status, _, body = out.decode().partition(" ")
    return int(status), json.loads(body)


FILES = [{"path": "writer.toml", "text": "[agent]"}]


@pytest.mark.parametrize(
    ("method", "path", "body", "asked"),
    [
        ("GET", "/v1/status", None, ("status", None)),
        ("GET", "/v1/status?unit=writer", None, ("status", "writer")),
        ("POST", "/v1/units/writer/start", {"wait": 2}, ("start", "writer", 2.0)),
        ("POST", "/v1/units/writer/start", None, ("start", "writer", None)),
        ("POST", "/v1/units/coder@2/restart", {}, ("restart", "coder@2", None)),
        ("POST", "/v1/units/writer/kill", {"signal": "SIGHUP"}, ("kill", "writer", "SIGHUP")),
        ("POST", "/v1/units/writer/kill", None, ("kill", "writer", "SIGKILL")),
        ("POST", "/v1/check", {"files": FILES}, ("check", FILES)),
        ("POST", "/v1/deploy", {"files": FILES}, ("deploy", FILES)),
        ("POST", "/v1/run", {"name": "x", "unit": {"agent": {}}}, ("run", "x", {"agent": {}})),
        ("DELETE", "/v1/units/writer", None, ("remove", "writer")),
        ("GET", "/v1/units/writer", None, ("explain", "writer")),
        ("POST", "/v1/send", {"to": "a", "kind": "k", "data": [1], "wait": 3, "id": "i"},
         ("send", {"to": "a", "kind": "k", "data": [1], "wait": 3.0, "id": "i"})),
        ("GET", "/v1/dlq?unit=writer", None, ("letters.list", {"unit": "writer"})),
        ("GET", "/v1/dlq/abc", None, ("letters.show", {"id": "abc"})),
        ("POST", "/v1/dlq/replay", {"ids": ["a"], "to": "b"}, ("letters.replay", {"ids": ["a"], "to": "b"})),
        ("POST", "/v1/dlq/purge", {"unit": "writer"}, ("letters.purge", {"unit": "writer"})),
        ("GET", "/v1/budget", None, ("budget.show", {})),
        ("POST", "/v1/budget/writer/raise", {"tokens": 500}, ("budget.raise", {"unit": "writer", "tokens": 500})),
        ("POST", "/v1/budget/writer/reset", None, ("budget.reset", {"unit": "writer"})),
        ("GET", "/v1/journal?unit=writer&kind=message&since=1.5&limit=7", None,
         ("journal", {"unit": "writer", "kind": "message", "since": 1.5, "limit": 7})),
        ("POST", "/v1/down", None, ("down",)),
    ],
)  # fmt: skip
async def test_every_row_asks_control(
    client: httpx.AsyncClient, fleet: Fleet, method: str, path: str, body: object, asked: tuple[object, ...]
) -> None:
    """Each row of API.md becomes one call, with its fields read, and its answer is the row's JSON."""
    answer = await client.request(method, path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"asked": asked[0]}
    assert fleet.asked == [asked]


async def test_the_actor_is_the_peer_and_its_reason(client: httpx.AsyncClient, fleet: Fleet) -> None:
    """Who did it is the kernel's word; why is the header, made printable."""
    await client.post("/v1/units/writer/stop", headers={b"X-Agentd-Reason": "too l\u00f6ud".encode()})
    await client.post("/v1/units/writer/stop", headers={b"X-Agentd-Reason": b"\xff" + b"x" * 1000})
    first, second = fleet.actors
    names = {entry.pw_uid: entry.pw_name for entry in pwd.getpwall()}
    assert first == Actor(names.get(os.getuid(), f"uid {os.getuid()}"), os.getpid(), "too l\u00f6ud")
    assert second.reason == "?" + "x" * 499


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/check", b"{", "line 1 column 2"),
        ("/v1/check", b"\xff", "not UTF-8"),
        ("/v1/check", b"[" * 100_000, "too deep"),
        ("/v1/check", b"[]", "must be a JSON object"),
        ("/v1/check", b"{}", "files is missing"),
        ("/v1/check", b'{"files": [{"path": "a"}]}', "files[0].text must be a text"),
        ("/v1/units/writer/stop", b'{"wait": "soon"}', 'wait must be a number, not "soon"'),
        ("/v1/units/writer/stop", b'{"wait": -1}', "wait must be a number of seconds from 0 on"),
        ("/v1/units/writer/stop", b'{"wait": NaN}', "wait must be a number of seconds from 0 on"),
        ("/v1/send", b'{"to": "a"}', "kind is missing"),
        ("/v1/run", b'{"name": "a", "unit": 3}', "unit must be an object, not 3"),
        ("/v1/budget/writer/raise", b"{}", "tokens is missing"),
        ("/v1/budget/writer/raise", b'{"tokens": 1.5}', "tokens must be a whole number from 1"),
        ("/v1/dlq/replay", b'{"ids": "a"}', "ids must be a list of texts"),
    ],
)
async def test_bad_bodies_are_named(
    client: httpx.AsyncClient, fleet: Fleet, path: str, body: bytes, words: str
) -> None:
    """400 says which field of the body is wrong and how; control was asked nothing."""
    answer = await client.post(path, content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "bad_input"
    assert words in error["message"]
    assert fleet.asked == []


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "since=yesterday"])
async def test_bad_queries_are_named(client: httpx.AsyncClient, query: str) -> None:
    """The query is checked as the body is."""
    answer = await client.get(f"/v1/journal?{query}")
    assert answer.status_code == 400
    assert f"query: {query.split('=', maxsplit=1)[0]} must be" in answer.json()["error"]["message"]


async def test_errors_have_their_status_and_json(client: httpx.AsyncClient) -> None:
    """An AgentdError crosses as itself; a wrong path or method and a body too big say so in JSON too."""
    answer = await client.get("/v1/status?unit=nobody")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_such_unit")
    assert answer.json()["error"]["hint"] == "`agentctl list` shows all."
    answer = await client.get("/v1/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    answer = await client.post("/v1/status")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "bad_input")
    assert "GET" in answer.headers["Allow"]
    answer = await client.post("/v1/check", content=b" " * (module.BODY_MAX + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "bad_input")


@pytest.mark.parametrize("name", ["..%2f..%2fetc", "Writer", "a%00b", "%2e%2e"])
async def test_what_cannot_be_a_name_is_no_unit(client: httpx.AsyncClient, fleet: Fleet, name: str) -> None:
    """Control never sees a name that could be a path."""
    answer = await client.get(f"/v1/units/{name}/logs")
    assert answer.status_code == 404
    assert fleet.asked == []


async def test_a_defect_is_500_and_says_what(client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]) -> None:
    """Any other exception is answered as internal, logged with its trace, and the server goes on."""
    answer = await client.get("/v1/doctor")
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["code"], "ZeroDivisionError: a defect" in error["message"]) == ("internal", True)
    assert "request failed" in "".join(capsys.readouterr())
    assert (await client.get("/v1/status")).status_code == 200


async def test_a_peer_inside_a_unit_is_refused(server: Server, fleet: Fleet) -> None:
    """A process that control knows as a unit's gets 403 and nothing happens; its neighbour is served."""
    fleet.inside = lambda pid: pid != os.getpid()
    status, body = await ask_as_child(server.path)
    assert (status, body["error"]["code"]) == (403, "denied")
    assert "runs inside a unit" in body["error"]["message"]
    assert fleet.asked == []
    fleet.inside = lambda pid: False
    assert (await ask_as_child(server.path))[0] == 200


@pytest.mark.root
async def test_another_user_is_refused(server: Server, fleet: Fleet) -> None:
    """Even where the mode of the socket were opened, another uid gets 403."""
    server.path.chmod(0o666)
    status, body = await ask_as_child(server.path, uid=54321)
    assert (status, body["error"]["code"]) == (403, "denied")
    assert "uid 54321" in body["error"]["message"]
    assert fleet.asked == []


@pytest.mark.root
async def test_another_user_cannot_even_connect(server: Server) -> None:
    """The socket's mode keeps other users out."""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", ASK, str(server.path), "54321"], capture_output=True, text=True
    )
    assert "PermissionError" in done.stderr


async def test_the_socket_is_private_whatever_the_umask(fleet: Fleet, short_dir: Path) -> None:
    """0600 from its first moment; the umask is what it was; after close nothing is left."""
    old = os.umask(0)
    try:
        server = await serve(as_control(fleet), short_dir / "control.sock")
        assert os.umask(0) == 0
    finally:
        os.umask(old)
    assert server.path.stat().st_mode & 0o777 == 0o600
    await server.close()
    assert list(short_dir.iterdir()) == []


async def test_a_dead_daemons_socket_is_replaced(fleet: Fleet, short_dir: Path) -> None:
    """What a killed daemon left does not hinder the next one."""
    path = short_dir / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = await serve(as_control(fleet), path)
    assert (await ask_as_child(path))[0] == 200
    await server.close()


async def test_an_old_servers_end_leaves_the_new_socket(server: Server, fleet: Fleet) -> None:
    """Where a newer daemon has the path by now, closing the older one does not remove it."""
    server.path.unlink()
    newer = await serve(as_control(fleet), server.path)
    await server.close()
    assert (await ask_as_child(newer.path))[0] == 200
    await newer.close()


async def test_a_living_daemons_socket_is_not_taken(server: Server, fleet: Fleet) -> None:
    """The second one is told, and the first goes on."""
    with pytest.raises(Conflict, match=r"another agentd listens.*--runtime"):
        await serve(as_control(fleet), server.path)
    assert (await ask_as_child(server.path))[0] == 200


async def test_paths_that_cannot_be_are_named(fleet: Fleet, short_dir: Path) -> None:
    """Too long, no directory, something else there: each its own words."""
    with pytest.raises(BadInput, match="107 bytes"):
        await serve(as_control(fleet), short_dir / ("x" * 120))
    with pytest.raises(HostCannot, match="No such file"):
        await serve(as_control(fleet), short_dir / "missing" / "control.sock")
    (short_dir / "file").write_text("precious")
    with pytest.raises(Conflict, match="not a socket"):
        await serve(as_control(fleet), short_dir / "file")
    assert (short_dir / "file").read_text() == "precious"


async def test_logs_are_text_as_it_comes(client: httpx.AsyncClient, fleet: Fleet) -> None:
    """Whole without follow; an unknown unit is a 404 and not half a log."""
    answer = await client.get("/v1/units/writer/logs?lines=5")
    assert (answer.text, answer.headers["Content-Type"]) == ("one\ntwo\n", "text/plain; charset=utf-8")
    assert fleet.asked == [("logs", "writer", 5, False)]
    assert (await client.get("/v1/units/nobody/logs")).status_code == 404


async def test_logs_of_a_span_of_time_and_as_json(client: httpx.AsyncClient, fleet: Fleet) -> None:
    """A span is whole unless lines are counted too; JSON lines have a type of their own; nonsense is named."""
    answer = await client.get("/v1/units/writer/logs?since=5.5&until=7&json=1")
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    await client.get("/v1/units/writer/logs?since=5&lines=3")
    assert fleet.asked == [
        ("logs", "writer", None, False, {"since": 5.5, "until": 7.0, "json": True}),
        ("logs", "writer", 3, False, {"since": 5.0}),
    ]
    for query, said in (
        ("since=soon", "since must be a number"),
        ("since=7&until=5", "until is earlier than since"),
        ("until=7&follow=1", "follow and until exclude each other"),
        ("json=maybe", "json must be 0 or 1"),
    ):
        answer = await client.get(f"/v1/units/writer/logs?{query}")
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize("lines", [0, 2])
async def test_following_ends_when_the_reader_leaves(client: httpx.AsyncClient, fleet: Fleet, lines: int) -> None:
    """The follower gets its headers though the log is silent, and its leaving is noticed though nothing is written."""
    async with client.stream("GET", f"/v1/units/writer/logs?follow=1&lines={lines}") as answer:
        assert answer.status_code == 200
        await until(lambda: fleet.followers == 1)
    await until(lambda: fleet.followers == 0)


async def test_a_real_log_is_followed_to_the_readers_end(
    client: httpx.AsyncClient, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the file through inotify and HTTP: lines arrive as they are written, and leaving closes every descriptor."""
    log = tmp_path / "writer.log"
    log.write_text("old\n")
    monkeypatch.setattr(fleet, "logs", lambda _unit, lines, follow: logs.read(log, lines, follow))
    before = len(os.listdir("/proc/self/fd"))
    async with client.stream("GET", "/v1/units/writer/logs?follow=1&lines=1") as answer:
        chunks = answer.aiter_bytes()
        assert await anext(chunks) == b"old\n"
        log.rename(f"{log}.1")
        log.write_text("new\n")
        assert await anext(chunks) == b"new\n"
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_what_was_begun_is_finished_when_the_asker_leaves(client: httpx.AsyncClient, fleet: Fleet) -> None:
    """A stop whose asker hangs up is still carried out."""
    fleet.may_stop.clear()
    asking = asyncio.create_task(client.post("/v1/units/writer/stop"))
    await until(lambda: fleet.asked == [("stop", "writer", None)])
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert (await client.get("/v1/status")).status_code == 200
    fleet.may_stop.set()
    await until(lambda: fleet.asked[-1] == ("stopped", "writer"))


async def test_closing_does_not_wait_for_followers(
    fleet: Fleet, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower's log ends at once; only requests that change something may use the time that closing gives."""
    monkeypatch.setattr(module, "CLOSE_WITHIN", 60.0)
    server = await serve(as_control(fleet), short_dir / "control.sock")
    reader, writer = await asyncio.open_unix_connection(str(server.path))
    writer.write(b"GET /v1/units/writer/logs?follow=1 HTTP/1.1\r\nHost: agentd\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b"two\n"), 5)
    await asyncio.wait_for(server.close(), 5)
    assert fleet.followers == 0
    writer.close()
