"""The body of a chat completion request: what the meter must know of it, and the few bytes that it changes.

The body is scanned once at its top level; every byte that is not a metering key goes on as it came. A body in which
two readers could see two different limits (a key twice, or in another case: Go reads ``MAX_TOKENS`` too) is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from json import decoder, scanner
from typing import Any, cast

from agentd.errors import BadInput

PER_MESSAGE = 16
"""Tokens that a message may cost beyond its bytes (role, separators)."""
PER_ATTACHMENT = 50_000
"""Tokens that an image, a file or audio may cost beyond its bytes: the dearest known is 48,169."""
CHOICES_MAX = 128
OUTPUT_MAX = 10_000_000

_METERED = frozenset(("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n"))
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING: Callable[[str, int, bool], tuple[str, int]] = cast("Any", decoder).scanstring
_VALUE: Callable[[str, int], tuple[Any, int]] = cast("Any", scanner).make_scanner(json.JSONDecoder())


@dataclass(frozen=True, slots=True)
class Field:
    """One top-level key: its value, and where the value stands in the text."""

    value: Any
    start: int
    end: int


class BadBody(BadInput):
    """The request body is wrong."""


def _fields(text: str) -> dict[str, Field]:
    """The top-level keys of a JSON object, with where each value stands."""

    def skip(at: int) -> int:
        match = _SPACE.match(text, at)
        assert match is not None
        return match.end()

    found: dict[str, Field] = {}
    at = skip(0)
    if text[at : at + 1] != "{":
        raise BadBody("the request body is not a JSON object.")
    at = skip(at + 1)
    closed = text[at : at + 1] == "}"
    while not closed:
        if text[at : at + 1] != '"':
            raise ValueError(f"expected a key at character {at}")
        key, at = _STRING(text, at + 1, True)
        at = skip(at)
        if text[at : at + 1] != ":":
            raise ValueError(f"expected ':' at character {at}")
        start = skip(at + 1)
        value, end = _VALUE(text, start)
        if key.casefold() in _METERED and (key not in _METERED or key in found):
            raise BadBody(f"the request names {key.casefold()!r} twice or in another case: its limit is not clear.")
        found[key] = Field(value, start, end)
        at = skip(end)
        closed = text[at : at + 1] == "}"
        if not closed and text[at : at + 1] != ",":
            raise ValueError(f"expected ',' at character {at}")
        at = at if closed else skip(at + 1)
    if skip(at + 1) != len(text):
        raise ValueError(f"something follows the object at character {at + 1}")
    return found


def _whole(fields: dict[str, Field], key: str, most: int | None = None) -> int | None:
    """A positive whole number, or None where the key is absent or null."""
    value = fields[key].value if key in fields else None
    if value is None:
        return None
    if type(value) is not int or value < 1 or (most is not None and value > most):
        bound = f" of at most {most}" if most else ""
        raise BadBody(f"{key!r} must be a positive whole number{bound}.")
    return value


def _attachments(messages: list[Any]) -> int:
    count = 0
    for message in messages:
        parts = message.get("content") if isinstance(message, dict) else None
        if isinstance(parts, list):
            count += sum(not isinstance(part, dict) or part.get("type") not in ("text", "refusal") for part in parts)
    return count


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request as its client wrote it, and what the meter needs of it."""

    text: str
    size: int
    fields: dict[str, Field]
    model: str
    stream: bool
    wants_usage: bool
    wanted: int | None
    choices: int
    messages: list[Any]

    @property
    def tokens_in(self) -> int:
        """An upper bound of the input: a token is at least one byte of UTF-8."""
        return self.size + PER_MESSAGE * len(self.messages) + PER_ATTACHMENT * _attachments(self.messages)

    def upstream(self, each: int, *, name: str, also: bool = False) -> bytes:
        """The body for the upstream: the clamp written in, usage asked for; all other bytes untouched.

        `name` is the key for the clamp where the client set none; with `also` it is written in any case.
        """
        changes: dict[str, str] = {
            key: str(each)
            for key in ("max_tokens", "max_completion_tokens")
            if key in self.fields and self.fields[key].value is not None
        }
        if not changes or also:
            changes[name] = str(each)
        if self.stream and not self.wants_usage:
            options = self.fields["stream_options"].value if "stream_options" in self.fields else None
            changes["stream_options"] = json.dumps({**(options or {}), "include_usage": True})
        return self._splice(changes)

    def _splice(self, changes: dict[str, str]) -> bytes:
        text = self.text
        for key in sorted((k for k in changes if k in self.fields), key=lambda k: -self.fields[k].start):
            field = self.fields[key]
            text = text[: field.start] + changes[key] + text[field.end :]
        new = ",".join(f'"{key}":{value}' for key, value in changes.items() if key not in self.fields)
        if new:
            brace = text.index("{") + 1
            text = text[:brace] + new + ("," if self.fields else "") + text[brace:]
        return text.encode()


def parse(body: bytes) -> ChatRequest:
    """Read a request body. BadBody says what is wrong with it."""
    try:
        text = body.decode("utf-8")
        fields = _fields(text)
    except StopIteration as error:
        raise BadBody(f"the request body is not JSON: no value at character {error.value}.") from None
    except RecursionError:
        raise BadBody("the request body is nested too deeply.") from None
    except ValueError as error:
        raise BadBody(f"the request body is not JSON: {error}.") from None
    return _chat(text, len(body), fields)


def _chat(text: str, size: int, fields: dict[str, Field]) -> ChatRequest:
    def value(key: str, kind: type, default: Any) -> Any:
        given = fields[key].value if key in fields else None
        if given is not None and not isinstance(given, kind):
            raise BadBody(f"{key!r} has the wrong type.")
        return default if given is None else given

    model = value("model", str, "")
    if not 0 < len(model) <= 256 or not model.isprintable():
        raise BadBody("'model' must name a model; GET /v1/models lists what there is.")
    caps = [_whole(fields, key) for key in ("max_tokens", "max_completion_tokens")]
    return ChatRequest(
        text=text,
        size=size,
        fields=fields,
        model=model,
        stream=value("stream", bool, default=False),
        wants_usage=value("stream_options", dict, {}).get("include_usage") is True,
        wanted=min((cap for cap in caps if cap is not None), default=None),
        choices=_whole(fields, "n", CHOICES_MAX) or 1,
        messages=value("messages", list, []),
    )
