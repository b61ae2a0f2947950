"""The virtual key: what an agent holds instead of a real API key.

It names unit and invocation in clear and proves them with an HMAC under the host's boot secret, so the gateway knows
it without any registration. Whether the invocation still lives is the gateway's to judge.
"""

from __future__ import annotations

import hashlib
import hmac

PREFIX = "agentd.v1."


def _proof(secret: bytes, unit: str, invocation: str) -> str:
    return hmac.new(secret, f"v1\0{unit}\0{invocation}".encode(), hashlib.sha256).hexdigest()[:32]


def virtual_key(secret: bytes, unit: str, invocation: str) -> str:
    """The key of one invocation of one unit."""
    return f"{PREFIX}{unit}.{invocation}.{_proof(secret, unit, invocation)}"


def verify(secret: bytes, key: str) -> tuple[str, str] | None:
    """Unit and invocation of a genuine key, else None. Takes the same time for every forgery."""
    if not key.isascii() or not key.startswith(PREFIX):
        return None
    parts = key[len(PREFIX) :].split(".")
    if len(parts) != 3:
        return None
    unit, invocation, proof = parts
    return (unit, invocation) if hmac.compare_digest(proof, _proof(secret, unit, invocation)) else None
