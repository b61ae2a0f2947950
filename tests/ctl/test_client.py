"""The client by itself: what a person is told when the other side does not behave."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from agentd.ctl.client import Client, decoded, unit_route
from agentd.errors import AgentdError, DaemonUnreachable, NotActive
from tests.ctl.stand_in import StandIn, serving


def test_a_daemon_that_hangs_is_left_at_the_deadline(short_dir: Path) -> None:
    """It accepts and says nothing: the client gives up in time and says so."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_dir / "control.sock"))
        listener.listen()
        with pytest.raises(DaemonUnreachable, match="did not answer in time"):
            Client(short_dir / "control.sock").get("/v1/status", timeout=0.05)


def test_an_error_without_reason_names_the_status(short_dir: Path) -> None:
    """An answer that is not of this API is an error, never a traceback."""
    answers = {"GET /v1/status": (500, [b"oops"]), "GET /v1/doctor": (200, [b"[1]"])}
    with serving(short_dir / "control.sock", answers) as stand_in:
        client = Client(stand_in.path)
        with pytest.raises(AgentdError, match="HTTP 500 without a reason"):
            client.get("/v1/status")
        with pytest.raises(AgentdError, match="not a JSON object"):
            decoded(client.get("/v1/doctor"))


def test_errors_come_back_as_what_they_were(daemon: StandIn) -> None:
    """The class, and with it the exit code, survives the socket, for streams as well."""
    error = {"code": "not_active", "message": "writer is not running.", "detail": {"unit": "writer"}}
    daemon.answers["GET /v1/units/writer/logs?lines=1"] = (409, {"error": error})
    with pytest.raises(NotActive, match="writer is not running") as caught:
        list(Client(daemon.path).stream(unit_route("writer", "logs"), {"lines": 1}))
    assert caught.value.exit_code == 3
    assert caught.value.detail == {"unit": "writer"}


def test_a_name_cannot_leave_its_place_in_the_route() -> None:
    """Slashes, questions and spaces of a name are quoted; an instance keeps its @."""
    assert unit_route("coder@2", "stop") == "/v1/units/coder@2/stop"
    assert unit_route("../x?y z") == "/v1/units/..%2Fx%3Fy%20z"
