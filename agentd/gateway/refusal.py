"""What the gateway answers when it does not forward: status, code and text, in the dialect of OpenAI's API.

A refusal that another try cannot change says so with ``x-should-retry: false``, which the SDKs obey.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from agentd.errors import AgentdError
from agentd.gateway.body import BadBody
from agentd.gateway.ledgerfile import LedgerUnwritable
from agentd.gateway.meter import BudgetExceeded
from agentd.gateway.upstream import UpstreamBroke, UpstreamDown, UpstreamSilent


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of our own."""

    status: int
    code: str
    message: str
    kind: str = "invalid_request_error"
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The error object."""
        error = {"message": self.message, "type": self.kind, "code": self.code, "param": None}
        return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")


FINAL = {"x-should-retry": "false"}
SOON = {"retry-after": "5"}

DEAD_KEY = Refusal(401, "dead_key", "agentd: this key is dead: its invocation is over.", headers=FINAL)
BAD_KEY = Refusal(
    401, "invalid_api_key", "agentd: not a key of this gateway. Use OPENAI_API_KEY as agentd gave it.", headers=FINAL
)
NO_SUCH_ROUTE = Refusal(404, "unknown_route", "agentd: no such route; there are /v1/chat/completions and /v1/models.")
FORBIDDEN = Refusal(
    403,
    "forbidden_route",
    "agentd: this route is not forwarded, because it could not be metered. "
    "There are /v1/chat/completions and /v1/models.",
    headers=FINAL,
)
WRONG_METHOD = Refusal(405, "method_not_allowed", "agentd: this route does not know that method.")
TOO_LARGE = Refusal(413, "body_too_large", "agentd: a request body holds at most 32 MiB.", headers=FINAL)
TOO_SLOW = Refusal(408, "body_too_slow", "agentd: the request body did not arrive within 60 s.", headers=FINAL)
OUR_KEY = Refusal(
    502,
    "upstream_refused_our_key",
    "agentd: the upstream did not accept the gateway's own API key or account. An operator must see to it.",
    "upstream_error",
    FINAL,
)
GARBAGE = Refusal(502, "upstream_garbage", "agentd: the upstream's answer was not understood.", "upstream_error", FINAL)
STOPPING = Refusal(503, "stopping", "agentd: the gateway is being restarted.", "server_error", SOON)


def no_such_model(model: str) -> Refusal:
    """No upstream has it."""
    text = f"agentd: no upstream has the model {model!r}; GET /v1/models lists what there is."
    return Refusal(404, "model_not_found", text, headers=FINAL)


def of(error: AgentdError) -> Refusal:
    """The answer for one of our errors."""
    match error:
        case BudgetExceeded():
            return Refusal(402, "budget_exceeded", error.message, "insufficient_quota", FINAL)
        case BadBody():
            return Refusal(400, "invalid_body", f"agentd: {error.message}", headers=FINAL)
        case UpstreamDown():
            return Refusal(503, "upstream_down", f"agentd: {error.message}", "upstream_error", SOON)
        case UpstreamSilent():
            return Refusal(504, "upstream_silent", f"agentd: {error.message}", "upstream_error", FINAL)
        case UpstreamBroke():
            return Refusal(502, "upstream_broke", f"agentd: {error.message}", "upstream_error", FINAL)
        case LedgerUnwritable():
            text = "agentd: the ledger cannot be written, so no call is admitted. An operator must see to it."
            return Refusal(503, "ledger_unwritable", text, "server_error", {"retry-after": "30"})
    return Refusal(error.status, error.code, f"agentd: {error}", "server_error", FINAL)
