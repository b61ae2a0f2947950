"""JSON-RPC 2.0 lines of the channel: bytes in, values out, and back. Pure; knows no method.

Anything that is not JSON-RPC becomes a Malformed, which carries the number of the error and the id to answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from agentd.errors import AgentdError, BadInput, ProtocolError

MAX_LINE = 1 << 20

Id = int | float | str | None
Params = dict[str, Any]

PARSE_ERROR, INVALID_REQUEST, NO_METHOD, FAILED = -32700, -32600, -32601, -32000
NUMBERS = {
    "bad_input": -32602,
    "no_such_unit": -32001,
    "denied": -32002,
    "full": -32003,
    "bus_unavailable": -32004,
    "unavailable": -32004,
    "too_late": -32005,
    "over_budget": -32006,
    "conflict": -32007,
}
_RETRY_AFTER = {"full": 1.0, "bus_unavailable": 0.5, "unavailable": 0.5}


class Malformed(ProtocolError):
    """A line that is not JSON-RPC."""

    def __init__(self, message: str = "", number: int = -32600, id: Id = None) -> None:  # noqa: A002
        self.number, self.id = number, id
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Request:
    """A call; a notification if ``wants_answer`` is false."""

    id: Id
    method: str
    params: Params
    wants_answer: bool = True


@dataclass(frozen=True, slots=True)
class Response:
    """What the other side answers to a call of ours: a result, or an error."""

    id: Id
    result: Any = None
    error: Params | None = None


def parse(line: bytes) -> Request | Response:
    """The value of one line; Malformed if it is none."""
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise Malformed(f"the line is not JSON in UTF-8: {e}", PARSE_ERROR) from None
    if not isinstance(value, dict):
        raise Malformed("a line is one JSON object; batches are not spoken here", INVALID_REQUEST)
    id_ = value.get("id")
    if not isinstance(id_, str | int | float | None) or isinstance(id_, bool):
        raise Malformed("id: a string or a number", INVALID_REQUEST)
    if value.get("jsonrpc") != "2.0":
        raise Malformed('jsonrpc: must be "2.0"', INVALID_REQUEST, id_)
    return _request(value, id_) if "method" in value else _response(value, id_)


def _request(value: Params, id_: Id) -> Request:
    params = value.get("params", {})
    if not isinstance(value["method"], str):
        raise Malformed("method: must be a string", INVALID_REQUEST, id_)
    if not isinstance(params, dict):
        raise Malformed("params: must be an object", INVALID_REQUEST, id_)
    return Request(id_, value["method"], params, wants_answer="id" in value)


def _response(value: Params, id_: Id) -> Response:
    if ("result" in value) == ("error" in value):
        raise Malformed("neither a request (method) nor an answer (result or error)", INVALID_REQUEST, id_)
    if "result" in value:
        return Response(id_, result=value["result"])
    error = value["error"]
    return Response(id_, error=error if isinstance(error, dict) else {"message": str(error)})


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def encode(value: Any) -> bytes:
    """One line without its end. Lone surrogates, which UTF-8 cannot hold, stay escaped."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def result(id_: Id, value: Any) -> bytes:
    """The line that answers a call."""
    return encode({"jsonrpc": "2.0", "id": id_, "result": value}) + b"\n"


def call(id_: Id, method: str, params: Params) -> bytes:
    """The line of a call."""
    return encode({"jsonrpc": "2.0", "id": id_, "method": method, "params": params}) + b"\n"


def notification(method: str, params: Params) -> bytes:
    """The line of a call that wants no answer."""
    return encode({"jsonrpc": "2.0", "method": method, "params": params}) + b"\n"


def error(id_: Id, what: AgentdError) -> bytes:
    """The line that refuses a call."""
    code = what.code if what.code in NUMBERS else "bad_input" if isinstance(what, BadInput) else "failed"
    number = NUMBERS.get(code, FAILED)
    if isinstance(what, ProtocolError):
        code, number = "protocol_error", what.number if isinstance(what, Malformed) else INVALID_REQUEST
    data: Params = {"code": code}
    if what.hint:
        data["hint"] = what.hint
    if code in _RETRY_AFTER:
        data["retry_after"] = _RETRY_AFTER[code]
    body = {"code": number, "message": what.message, "data": data}
    return encode({"jsonrpc": "2.0", "id": id_, "error": body}) + b"\n"
