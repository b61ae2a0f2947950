"""Every error of the SDK.

AgentError
├── Refuse       raised by a handler: this message is wrong, do not deliver it again
├── Retry        raised by a handler: not now, deliver it again later
├── CallError    a send or an ask did not succeed; ``code`` says why
│   └── LinkLost     the connection went away before the answer (the SDK repeats the call by itself)
└── Rejected     the router refused our hello: this process has no business here
"""

from __future__ import annotations

from typing import Any


class AgentError(Exception):
    """Something that the SDK raises on purpose."""


class Refuse(AgentError):
    """Raise it in a handler: the message is refused for good and dead-lettered with this reason."""


class Retry(AgentError):
    """Raise it in a handler: the message comes again, after ``delay`` seconds or the unit's own back-off."""

    def __init__(self, why: str = "asked for a retry", *, delay: float | None = None) -> None:
        super().__init__(why)
        if delay is not None and not 0 <= delay <= 86_400:
            raise ValueError(f"delay = {delay}: from 0 to 86400 seconds")
        self.delay = delay


class CallError(AgentError):
    """A ``send`` or ``ask`` failed. ``code`` is one of the channel's words, such as ``no_such_unit`` or ``full``."""

    def __init__(self, code: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code, self.message = code, message
        self.retry_after = retry_after

    @classmethod
    def from_wire(cls, error: dict[str, Any]) -> CallError:
        """Build it from the ``error`` object of a JSON-RPC answer."""
        data = error.get("data")
        data = data if isinstance(data, dict) else {}
        code = str(data.get("code") or error.get("code") or "failed")
        return cls(code, str(error.get("message") or "no reason given"), retry_after=_seconds(data.get("retry_after")))


class LinkLost(CallError):
    """The connection to the router went away before the answer came."""

    def __init__(self) -> None:
        super().__init__("link_lost", "the connection to the router was lost")


class Rejected(AgentError):
    """The router does not accept this process; going on would be useless."""


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
