"""Every error that agentd raises on purpose.

    AgentdError                 1  500
    ├── BadInput                2  400  what a person wrote is wrong
    │   ├── UnitFileError       2  400  a unit file, with file, line and key
    │   └── ConfigError         2  400  agentd.toml or a command-line option
    ├── NotFound                1  404
    │   ├── NoSuchUnit          4  404
    │   └── NoSuchLetter        1  404  no dead letter with this id
    ├── NotActive               3  409  the unit is not running
    ├── Conflict                1  409  it exists already, or is in use by another process
    ├── HostCannot              1  422  this host cannot give what was asked for
    ├── SpawnFailed             1  500  the keeper could not execute a plan; names the step
    ├── Denied                  1  403  the peer may not do this
    ├── Unavailable             1  503  a neighbour process is away
    │   ├── DaemonUnreachable   5  503
    │   ├── BusUnavailable      1  503
    │   └── GatewayUnavailable  1  503
    ├── Full                    1  429  an inbox, a stream or a disk is full
    ├── TooLate                 1  504  a deadline went by
    ├── OverBudget              1  402  a budget or an allowance is used up
    └── ProtocolError           1  400  a peer broke one of our four protocols

The numbers are the exit code of ``agentctl`` and the HTTP status of the control API. A message reads
*where: what, why*, and ``hint`` says what to do. May be used by all rooms; uses nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar


class AgentdError(Exception):
    """Something went wrong in agentd."""

    exit_code: ClassVar[int] = 1
    status: ClassVar[int] = 500
    default_hint: ClassVar[str | None] = None

    def __init__(self, message: str = "", *, hint: str | None = None, **detail: Any) -> None:
        self.message = message or (self.__doc__ or "").strip()
        self.hint = hint if hint is not None else self.default_hint
        self.detail = detail
        super().__init__(self.message)

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        return f"{self.message}{'' if self.message.endswith(('.', '!', '?')) else '.'} {self.hint}"

    @property
    def code(self) -> str:
        """The snake_case name that travels over sockets: ``NoSuchUnit`` → ``no_such_unit``."""
        return _code(type(self))

    def to_wire(self) -> dict[str, Any]:
        """The form in which an error crosses a socket."""
        wire: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.hint:
            wire["hint"] = self.hint
        if self.detail:
            wire["detail"] = self.detail
        return wire


class BadInput(AgentdError):
    """The input is wrong."""

    exit_code = 2
    status = 400


class UnitFileError(BadInput):
    """A unit file is wrong."""

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        key: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.file, self.line, self.key = file, line, key
        place = f"{file}:{line}" if file and line else file
        where = " ".join(p for p in (place and place + ":", key and key + ":") if p)
        super().__init__(f"{where} {message}".strip(), hint=hint, file=file, line=line, key=key)


class ConfigError(BadInput):
    """The configuration is wrong."""


class NotFound(AgentdError):
    """There is no such thing."""

    status = 404


class NoSuchUnit(NotFound):
    """There is no unit with this name."""

    exit_code = 4


class NoSuchLetter(NotFound):
    """There is no dead letter with this id."""


class NotActive(AgentdError):
    """The unit is not running."""

    exit_code = 3
    status = 409


class Conflict(AgentdError):
    """It exists already or is in use."""

    status = 409


class HostCannot(AgentdError):
    """This host cannot give what was asked for."""

    status = 422


class SpawnFailed(AgentdError):
    """The keeper could not execute a spawn plan."""


class Denied(AgentdError):
    """The peer may not do this."""

    status = 403


class Unavailable(AgentdError):
    """A neighbour process is away."""

    status = 503


class DaemonUnreachable(Unavailable):
    """The daemon does not answer."""

    exit_code = 5


class BusUnavailable(Unavailable):
    """The bus does not answer."""


class GatewayUnavailable(Unavailable):
    """The gateway does not answer."""


class Full(AgentdError):
    """No room is left."""

    status = 429


class TooLate(AgentdError):
    """The deadline went by."""

    status = 504


class OverBudget(AgentdError):
    """The budget is used up."""

    status = 402


class ProtocolError(AgentdError):
    """A peer broke the protocol."""

    status = 400


def _code(kind: type[AgentdError]) -> str:
    return "".join("_" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(kind.__name__))


def _tree(root: type[AgentdError]) -> dict[str, type[AgentdError]]:
    found = {_code(root): root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def from_wire(wire: dict[str, Any]) -> AgentdError:
    """Build the error that a peer sent with ``to_wire``; an unknown code becomes a plain AgentdError."""
    kind = _tree(AgentdError).get(str(wire.get("code")), AgentdError)
    error = kind.__new__(kind)
    AgentdError.__init__(error, str(wire.get("message", "")), hint=wire.get("hint"), **wire.get("detail", {}))
    return error
