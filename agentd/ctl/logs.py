"""``agentctl logs``: what units printed."""

from __future__ import annotations

import json as codec
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime
from typing import Annotated, Any

import typer

from agentd.ctl import paint
from agentd.ctl.client import Client, unit_route
from agentd.ctl.fields import Renderer, fields, readable
from agentd.ctl.moment import moment
from agentd.ctl.options import UnitNames, client_of
from agentd.errors import AgentdError, BadInput, from_wire

app = typer.Typer()
Json = dict[str, Any]
LAST = 100
ALL = 10_000_000
WAITING = 1000
"""Lines of several followed units that wait to be printed."""
When = Annotated[str | None, typer.Option("--since", metavar="WHEN", help="From then on: 10m, 03:14, an ISO date.")]
Until = Annotated[str | None, typer.Option("--until", metavar="WHEN", help="Up to then.")]
Pattern = Annotated[str | None, typer.Option("--grep", metavar="REGEX", help="Only lines that it is found in.")]


@app.command(rich_help_panel="Look")
def logs(
    ctx: typer.Context,
    units: UnitNames,
    lines: Annotated[int | None, typer.Option("--lines", "-n", metavar="N", min=0, help="Of the last N lines.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    since: When = None,
    until: Until = None,
    grep: Pattern = None,
    times: Annotated[bool, typer.Option("--time", "-t", help="When each line was printed.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object for each line.")] = False,
) -> None:
    """Print what units printed.

    The last 100 lines, or all of a span of time, or all that match. Several units are merged by time; with -f their
    lines come as they are printed. On a terminal escape sequences are made harmless and JSON lines show their message
    first; into a pipe or a file the bytes go as they are.
    """
    client, pattern = client_of(ctx), _compiled(grep)
    query = _query(lines, follow, since, until, grep)
    if json or times or len(units) > 1:
        found = _merged(client, units, query)
        shown = (_as_json if json else _Lines(units, times))(line for line in found if _matches(pattern, line))
        for text in shown:
            print(text, flush=True)
        return
    with closing(client.stream(unit_route(units[0], "logs"), query)) as chunks:
        _show(_filtered(chunks, pattern) if pattern else chunks)


def _query(lines: int | None, follow: bool, since: str | None, until: str | None, grep: str | None) -> Json:
    now = time.time()
    if follow and until is not None:
        raise BadInput("--until: --follow goes on until Ctrl-C.", hint="Leave one of the two out.")
    begin, end = moment("--since", since, now), moment("--until", until, now)
    if begin is not None and end is not None and end < begin:
        raise BadInput("--until: is earlier than --since.")
    if lines is None:
        lines = LAST if begin is None and end is None and (grep is None or follow) else ALL
    return {"lines": lines, "follow": int(follow), "since": begin, "until": end}


def _compiled(grep: str | None) -> re.Pattern[str] | None:
    try:
        return None if grep is None else re.compile(grep)
    except re.error as error:
        raise BadInput(f"--grep: {paint.line(grep)!r} is not a regular expression: {error}.") from None


def _matches(pattern: re.Pattern[str] | None, line: Json) -> bool:
    return pattern is None or pattern.search(line["line"]) is not None


# -- as it was printed -----------------------------------------------------------------------------------------


def _show(chunks: Iterable[bytes]) -> None:
    if not sys.stdout.isatty():
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        return
    renderer = Renderer(paint.coloured())
    for chunk in chunks:
        print(renderer.feed(chunk), end="", flush=True)
    print(renderer.feed(b"", final=True), end="", flush=True)


def _filtered(chunks: Iterable[bytes], pattern: re.Pattern[str]) -> Iterator[bytes]:
    """The lines that match, each with all its bytes."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        found = [text + b"\n" for text in whole if pattern.search(text.decode("utf-8", "replace"))]
        if found:
            yield b"".join(found)
    if rest and pattern.search(rest.decode("utf-8", "replace")):
        yield rest


# -- line by line ----------------------------------------------------------------------------------------------


def _merged(client: Client, units: list[str], query: Json) -> Iterator[Json]:
    streams = [_lines(client, unit, query) for unit in units]
    if len(streams) == 1:
        return streams[0]
    if query["follow"]:
        return _as_they_come(streams)
    from heapq import merge

    return (line for _, line in merge(*map(_dated, streams), key=lambda dated: dated[0]))


def _lines(client: Client, unit: str, query: Json) -> Iterator[Json]:
    rest = bytearray()
    with closing(client.stream(unit_route(unit, "logs"), {**query, "json": 1})) as chunks:
        for chunk in chunks:
            rest += chunk
            *whole, rest = rest.split(b"\n") if b"\n" in chunk else [rest]
            for text in whole:
                line = codec.loads(text)
                if "error" in line:
                    raise from_wire(line["error"])
                yield line


def _dated(lines: Iterator[Json]) -> Iterator[tuple[float, Json]]:
    """Each line with a time to sort by; one without has that of the line before."""
    at = 0.0
    for line in lines:
        at = max(at, line["at"] or 0.0)
        yield at, line


def _as_they_come(streams: list[Iterator[Json]]) -> Iterator[Json]:
    """The lines of streams that may have no end, in the order of their arrival."""
    from queue import Queue
    from threading import Thread

    queue: Queue[Json | AgentdError | None] = Queue(WAITING)

    def pull(stream: Iterator[Json]) -> None:
        try:
            for line in stream:
                queue.put(line)
        except AgentdError as error:
            queue.put(error)
        finally:
            queue.put(None)

    for stream in streams:
        Thread(target=pull, args=(stream,), daemon=True).start()
    open_streams = len(streams)
    while open_streams:
        told = queue.get()
        if isinstance(told, AgentdError):
            raise told
        if told is None:
            open_streams -= 1
        else:
            yield told


def _as_json(lines: Iterable[Json]) -> Iterator[str]:
    """The API's lines, and the fields of those that are JSON themselves."""
    for line in lines:
        found = fields(line["line"])
        yield codec.dumps(line if found is None else {**line, "fields": found})


class _Lines:
    """Lines for people: time and unit in front, as asked."""

    def __init__(self, units: list[str], times: bool) -> None:
        self._width = max(map(len, units)) if len(units) > 1 else 0
        self._times = times
        self._terminal, self._colour = sys.stdout.isatty(), paint.coloured()

    def __call__(self, lines: Iterable[Json]) -> Iterator[str]:
        for line in lines:
            text = readable(line["line"], self._colour) if self._terminal else line["line"]
            yield paint.paint(self._head(line), "dim", self._colour) + text

    def _head(self, line: Json) -> str:
        head = f"{_stamp(line['at'])}  " if self._times else ""
        return head + (f"{line['unit']:<{self._width}}  " if self._width else "")


def _stamp(at: float | None) -> str:
    if at is None:
        return "-" * 23
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
