"""What ``agentctl explain`` prints: a unit as a commented file. A pure function of the API's answer and the width."""

from __future__ import annotations

import json
import shlex
from typing import Any

from agentd.ctl.paint import line, paint, wrapped

Json = dict[str, Any]
INDENT = "    "


def explained(answer: Json, width: int, colour: bool) -> list[str]:
    """The lines: each section, each setting with its value, its source, and what it means."""
    lines = [f"{paint(line(answer['name']), 'bold', colour)}  {line(answer.get('file') or 'transient: no file')}"]
    lines += [f"drop-in    {line(file)}" for file in answer.get("dropins") or ()]
    if answer.get("argv"):
        lines.append(f"runs       {line(shlex.join(answer['argv']))}")
    if answer.get("level"):
        lines.append(f"isolation  {line(answer['level'])}")
    section = None
    for setting in answer["settings"]:
        if setting["section"] != section:
            section = setting["section"]
            lines += ["", paint(f"[{line(section)}]", "bold", colour)]
        lines += _setting(setting, answer.get("file"), width, colour)
    return lines


def _setting(setting: Json, file: str | None, width: int, colour: bool) -> list[str]:
    """``key = value  (source)``; what a person wrote names the default that it replaces."""
    source = {"file": "from the file", "host": "from this host", "default": "default"}.get(setting["source"], "")
    if setting.get("file") not in (None, file):
        source = f"from {setting['file'].rpartition('/')[2]}"
    if setting["source"] != "default":
        source += f"; default {value(setting.get('default'))}"
    first = f"{line(setting['key'])} = {value(setting.get('value'))}"
    meaning = wrapped(line(setting.get("help") or ""), width - len(INDENT), "")
    return [f"{first}  {paint(f'({line(source)})', 'dim', colour)}"] + [
        INDENT + paint(text, "dim", colour) for text in meaning if text
    ]


def value(of: object) -> str:
    """A value as a unit file would say it."""
    if of is None:
        return "none"
    return line(json.dumps(of, ensure_ascii=False))
