"""One question to the model, through agentd's gateway, with nothing but the standard library.

agentd sets OPENAI_BASE_URL and OPENAI_API_KEY for every unit, so any OpenAI client works unchanged too. The key is
good for this unit's gateway budget only; the real ones never leave the gateway.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import urllib.error
import urllib.request
from typing import Any

from agentd.sdk import Retry

TIMEOUT = 120.0


class OutOfBudget(Retry):
    """The gateway answered 402. With ``on_exhausted = "hold"`` agentd now holds the unit, and the message waits."""


async def think(prompt: str, *, max_tokens: int = 300) -> str:
    """Ask the model in a thread: this loop goes on beating, so agentd sees *thinking*, not *hung*."""
    return await asyncio.to_thread(chat, prompt, max_tokens=max_tokens)


def chat(prompt: str, *, max_tokens: int = 300) -> str:
    """Ask the model and wait. Raises OutOfBudget, or Retry when the gateway or the model is away for now."""
    question = {
        "model": model_name(),
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
    }
    answer = _request("/chat/completions", question)
    return str(answer["choices"][0]["message"]["content"] or "").strip()


@functools.cache
def model_name() -> str:
    """AGENTD_MODEL, else the first model that the gateway offers."""
    return os.environ.get("AGENTD_MODEL") or str(_request("/models")["data"][0]["id"])


def _request(path: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(
        os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:4180/v1") + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": "Bearer " + os.environ.get("OPENAI_API_KEY", "none"),
            "Content-Type": "application/json",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            raise _failure(error) from None
    except OSError as error:
        raise Retry(f"the gateway does not answer: {error}") from error


def _failure(error: urllib.error.HTTPError) -> Exception:
    """402 and the passing troubles mean *later*; anything else is a mistake that someone must look at."""
    text = error.read(2000).decode(errors="replace")
    try:
        text = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        text = text.strip() or error.reason
    if error.code == 402:
        return OutOfBudget(f"out of budget: {text}")
    if error.code in (429, 500, 502, 503, 504):
        wait = error.headers.get("Retry-After", "")
        return Retry(f"the model is not available: {text}", delay=float(wait) if wait.isdigit() else None)
    return RuntimeError(f"the gateway answered {error.code}: {text}")
