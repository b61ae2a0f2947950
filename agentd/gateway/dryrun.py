"""The dry-run model: built in, deterministic, and it says that it is one. No model is called, nothing is paid.

It answers any model name. Three names ask for a behaviour, for tests and demonstrations:
``dry-run-slow`` waits 20 ms before each piece, ``dry-run-long`` writes until max_tokens, ``dry-run-hang`` never
answers.
Its tokens: four bytes of the request's messages each, and one for each piece of the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator
from typing import Any

from agentd.gateway.body import ChatRequest

NAMES = ("dry-run", "dry-run-slow", "dry-run-long")
_SLOW = 0.02
_QUOTE = 240


def _last_words(messages: list[Any]) -> str:
    for message in reversed(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        if isinstance(content, str) and content.strip():
            return " ".join(content.split())
    return ""


def answer(chat: ChatRequest, each: int) -> tuple[list[str], bool]:
    """The pieces of the answer, and whether it was cut at `each` pieces."""
    words = _last_words(chat.messages)
    mark = hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()[:8]
    quote = words if len(words) <= _QUOTE else words[:_QUOTE].rsplit(" ", 1)[0] + " …"
    text = f"[dry-run model, no LLM was called; answer {mark}] You wrote {len(words)} characters: “{quote}”"
    pieces = re.findall(r"\S+\s*", text)
    if chat.model == "dry-run-long":
        pieces = (pieces * (each // len(pieces) + 1))[: each + 1]
    return pieces[:each], len(pieces) > each


def usage(chat: ChatRequest, pieces: list[str]) -> dict[str, int]:
    """What the answer costs; never more than the meter's bound."""
    size = len(json.dumps(chat.messages, ensure_ascii=False).encode("utf-8", "replace"))
    tokens_in = min(-(-size // 4), chat.tokens_in)
    tokens_out = len(pieces) * chat.choices
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


def _frame(chat: ChatRequest, kind: str) -> dict[str, Any]:
    mark = hashlib.sha256(chat.text.encode()).hexdigest()[:24]
    return {"id": f"chatcmpl-{mark}", "object": kind, "created": 0, "model": chat.model}


def whole(chat: ChatRequest, each: int) -> bytes:
    """A chat.completion."""
    pieces, cut = answer(chat, each)
    message = {"role": "assistant", "content": "".join(pieces)}
    reason = "length" if cut else "stop"
    choices = [{"index": i, "message": message, "finish_reason": reason} for i in range(chat.choices)]
    frame = _frame(chat, "chat.completion")
    return json.dumps({**frame, "choices": choices, "usage": usage(chat, pieces)}, ensure_ascii=False).encode()


async def events(chat: ChatRequest, each: int) -> AsyncGenerator[bytes, None]:
    """The same as chat.completion.chunk events, with the usage chunk last."""
    pieces, cut = answer(chat, each)
    frame = _frame(chat, "chat.completion.chunk")

    def event(choices: list[Any], counts: dict[str, int] | None = None) -> bytes:
        chunk = {**frame, "choices": choices, "usage": counts}
        return b"data: %b\n\n" % json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode()

    for number, piece in enumerate(pieces):
        # Nothing else here waits: without a turn for the others, a long answer to a fast reader would be a hang.
        await asyncio.sleep(_SLOW if chat.model == "dry-run-slow" else 0)
        delta = {"content": piece} if number else {"role": "assistant", "content": piece}
        yield event([{"index": i, "delta": delta, "finish_reason": None} for i in range(chat.choices)])
    reason = "length" if cut else "stop"
    yield event([{"index": i, "delta": {}, "finish_reason": reason} for i in range(chat.choices)])
    yield event([], usage(chat, pieces)) + b"data: [DONE]\n\n"


async def body(chat: ChatRequest, each: int) -> AsyncGenerator[bytes, None]:
    """The bytes of the answer, whole or streamed, as the request wants it."""
    if chat.model == "dry-run-hang":
        await asyncio.Event().wait()
    if chat.stream:
        async for data in events(chat, each):
            yield data
        return
    if chat.model == "dry-run-slow":
        await asyncio.sleep(_SLOW * len(answer(chat, each)[0]))
    yield whole(chat, each)
