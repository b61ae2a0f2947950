"""Reading the fields of a request, from its JSON body or its query, with errors that name the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from agentd.errors import BadInput

Json = dict[str, Any]


class Fields:
    """The fields of one request. ``where`` (``body``, ``query``) begins every error."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self._where = values, where

    def text(self, name: str) -> str:
        """A text that must be there and not empty."""
        value = self.text_or_none(name)
        if not value:
            raise self._wrong(name, "is missing")
        return value

    def text_or_none(self, name: str) -> str | None:
        """A text, or None where it is not given."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, f"must be a text, not {_show(value)}")
        return value

    def seconds(self, name: str) -> float | None:
        """A finite number, not negative; None where it is not given."""
        value = self._number(name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise self._wrong(name, f"must be a number of seconds from 0 on, not {_show(self._values[name])}")
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number between ``low`` and ``high``."""
        value = self._number(name)
        if value is None:
            return default
        if not (math.isfinite(value) and value.is_integer() and low <= value <= high):
            raise self._wrong(name, f"must be a whole number from {low} to {high}, not {_show(self._values[name])}")
        return int(value)

    def flag(self, name: str) -> bool:
        """``1``/``true`` or ``0``/``false``; false where it is not given."""
        value = self._values.get(name, False)
        known = {"1": True, "true": True, "0": False, "false": False, "": False}.get(str(value).lower())
        if known is None:
            raise self._wrong(name, f"must be 0 or 1, not {_show(value)}")
        return known

    def table(self, name: str) -> Json:
        """A JSON object that must be there."""
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "is missing" if value is None else f"must be an object, not {_show(value)}")
        return value

    def texts(self, name: str) -> list[str] | None:
        """A list of texts, or None where it is not given."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, f"must be a list of texts, not {_show(value)}")
        return value

    def files(self) -> list[Json]:
        """``files``: a list of ``{path, text}``."""
        value = self._values.get("files")
        if not isinstance(value, list):
            raise self._wrong("files", "is missing" if value is None else f"must be a list, not {_show(value)}")
        for number, file in enumerate(value):
            if not isinstance(file, dict):
                raise self._wrong(f"files[{number}]", f"must be an object, not {_show(file)}")
            for name in ("path", "text"):
                if not isinstance(file.get(name), str):
                    raise self._wrong(f"files[{number}].{name}", "must be a text")
        return [{"path": file["path"], "text": file["text"]} for file in value]

    def given(self, *names: str) -> Json:
        """Those of these texts that were given and are not empty."""
        found = {name: self.text_or_none(name) for name in names}
        return {name: value for name, value in found.items() if value}

    def has(self, name: str) -> bool:
        """Whether the field was given at all."""
        return self._values.get(name) is not None

    def raw(self, name: str) -> Any:
        """The value as it came."""
        return self._values.get(name)

    def _number(self, name: str) -> float | None:
        value = self._values.get(name)
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self._wrong(name, f"must be a number, not {_show(value)}")
        try:
            return float(value)
        except (ValueError, OverflowError):
            raise self._wrong(name, f"must be a number, not {_show(value)}") from None

    def _wrong(self, name: str, why: str) -> BadInput:
        return BadInput(f"{self._where}: {name} {why}.")


def query(request: web.Request) -> Fields:
    """The fields of the query."""
    return Fields(request.query, "query")


async def body(request: web.Request) -> Fields:
    """The fields of the body; no body is no fields. Raises BadInput for what is not a JSON object."""
    raw = await request.read()
    try:
        value = json.loads(raw) if raw.strip() else {}
    except UnicodeDecodeError as error:
        raise BadInput(f"body: not UTF-8: {error.reason} at byte {error.start}.") from error
    except json.JSONDecodeError as error:
        raise BadInput(f"body: not JSON: line {error.lineno} column {error.colno}: {error.msg}.") from error
    except RecursionError:
        raise BadInput("body: not JSON that can be read: nested too deep.") from None
    if not isinstance(value, dict):
        raise BadInput(f"body: must be a JSON object, not {_show(value)}.")
    return Fields(value, "body")


def _show(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
