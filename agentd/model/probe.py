"""A probe: what is asked of a unit to see whether it is well, and how often. Asking is the daemon's."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from agentd.model import quantity
from agentd.model.section import Section

Seconds = Annotated[float, BeforeValidator(quantity.duration)]
FORMS = '"http://127.0.0.1:PORT/path", "tcp:HOST:PORT", ["COMMAND", ...], or a table with http, tcp or exec'
_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")


class Probe(Section):
    """Exactly one of ``http``, ``tcp`` and ``exec`` is set."""

    http: str | None = Field(None, description="A URL that is to answer GET with a status below 400.")
    tcp: str | None = Field(None, description="HOST:PORT that is to take a connection.")
    exec: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        None, description="A command beside the unit that is to exit 0.", min_length=1
    )
    expect: str | None = Field(None, description="What a tcp server is to say first.", min_length=1, max_length=256)
    interval: Seconds = Field(10.0, description="From the end of one question to the next.", ge=0.1)
    timeout: Seconds = Field(3.0, description="For one answer.", gt=0)
    failures: int = Field(3, description="So many in a row are a hang.", ge=1)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if [self.http, self.tcp, self.exec].count(None) != 2:
            raise ValueError(f"a probe asks one thing: {FORMS}")
        if self.expect is not None and self.tcp is None:
            raise ValueError("expect belongs to a tcp probe")
        if self.exec is None:
            address(self)
        return self


def probe_table(value: Any) -> Any:
    """The table that the short form stands for."""
    if isinstance(value, list | tuple):
        return {"exec": tuple(value)}
    if isinstance(value, dict) and isinstance(value.get("exec"), list):
        return {**value, "exec": tuple(value["exec"])}
    if not isinstance(value, str):
        return value
    if value.startswith("http:"):
        return {"http": value}
    if value.startswith("tcp:"):
        return {"tcp": value.removeprefix("tcp:").removeprefix("//")}
    raise ValueError(f"{value!r} is no probe; write {FORMS}")


def address(probe: Probe) -> tuple[str, int]:
    """Host and port to connect to, of a probe that is no command; ValueError in words."""
    if probe.http is None:
        return _parts(probe.tcp or "", probe.tcp or "")
    url = urlsplit(probe.http)
    if url.scheme != "http":
        raise ValueError(f"{probe.http!r}: a probe speaks http:// only")
    if url.username is not None or any(c.isspace() or not c.isprintable() for c in probe.http):
        raise ValueError(f"{probe.http!r} is no plain URL")
    return _parts(url.netloc if re.search(r":\d+$", url.netloc) else f"{url.netloc}:80", probe.http)


def _parts(text: str, shown: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ValueError(f"{shown!r} names no HOST:PORT, such as 127.0.0.1:8080")
    return found["host"].strip("[]"), int(found["port"])
