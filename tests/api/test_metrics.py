"""The metrics listener over real TCP."""

from __future__ import annotations

import socket

import httpx
import pytest

from agentd.api import metrics
from agentd.errors import AgentdError, ConfigError, Conflict, HostCannot


async def test_a_free_port_is_chosen_and_told() -> None:
    """Port 0 is accepted; the address that was got answers with what render gives at each scrape."""
    numbers = iter((b"agentd_x 1\n", b"agentd_x 2\n"))
    listener = await metrics.listen("127.0.0.1:0", lambda: next(numbers))
    async with httpx.AsyncClient() as client:
        for text in ("agentd_x 1\n", "agentd_x 2\n"):
            answer = await client.get(f"http://{listener.address}/metrics")
            assert (answer.status_code, answer.text) == (200, text)
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert (await client.get(f"http://{listener.address}/")).status_code == 404
    assert not listener.address.endswith(":0")
    await listener.close()
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", int(listener.address.rpartition(":")[2])))


async def test_a_taken_port_is_named() -> None:
    """Who wanted which address, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(Conflict, match=f"metrics: {address} is taken.*port 0"):
            await metrics.listen(address, bytes)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("9464", ConfigError),
        ("127.0.0.1:", ConfigError),
        ("127.0.0.1:http", ConfigError),
        (":9464", ConfigError),
        ("127.0.0.1:99999", ConfigError),
        ("192.0.2.1:9464", HostCannot),
    ],
)
async def test_what_is_no_address_is_named(address: str, kind: type[AgentdError]) -> None:
    """Each wrong address is one clear error."""
    with pytest.raises(kind, match="metrics: .*" + address):
        await metrics.listen(address, bytes)
