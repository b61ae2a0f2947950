"""From the text of a unit file to a Unit, or to errors that name file, line, key, what is wrong and what to do.

Parsing only: each file by itself, each setting by itself. How several files make one unit is ``layers``'s, what units
and settings mean together is ``verify``'s. Reads no file: the text is an argument. Types are TOML's own and strict:
``burst = "5"`` is a text, not a number. A template is read as its instance ``template.SAMPLE`` would be.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import Any

from pydantic import ValidationError

from agentd.errors import UnitFileError
from agentd.model import template
from agentd.model.section import Section
from agentd.model.unit import NAME, PLANNED, SECTIONS, SYSTEM_UNITS, Unit

_SOME_AGENT = {"exec": ["-"]}
"""Stands in for a section that is reported already, so that the rest can be checked."""

_EXPECTED = {
    "string_type": "a text in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": 'a list of texts, such as ["a", "b"]',
    "dict_type": 'a table, such as { KEY = "value" }',
}
"""What a setting should have been, by pydantic's kind of error."""


def parse(text: str, name: str, file: str | None = None) -> Unit:
    """The unit that a file describes; its first problem as UnitFileError."""
    data, errors = draft(text, name, file, expands=template.is_template(name))
    if errors:
        raise errors[0]
    return validated(name, data, file)


def from_dict(name: str, data: Mapping[str, Any]) -> Unit:
    """The unit that a request describes (a transient unit); its first problem as UnitFileError."""
    if errors := sorted(_problems(name, data, None, ""), key=_line):
        raise errors[0]
    return validated(name, data, None)


def problems(text: str, name: str, file: str | None = None) -> list[UnitFileError]:
    """All that is wrong with a unit file, by line; empty when ``parse`` would succeed."""
    return draft(text, name, file, expands=template.is_template(name))[1]


def draft(
    text: str, name: str, file: str | None, *, expands: bool = False, whole: bool = True
) -> tuple[dict[str, Any], list[UnitFileError]]:
    """What one file says, section by section, and all that is wrong with it by line.

    ``expands``: it is a template's, and is read for the instance that ``name`` has. Not ``whole``: it is one of several
    files of its unit, and what it lacks may stand in another.
    """
    data, errors = _load(text, file)
    if errors:
        return {}, errors
    if expands:
        data, unknown = template.expand(data, template.instance_of(name) or template.SAMPLE)
        errors = [_unknown_specifier(path, word, file, text) for path, word in unknown]
    told = {error.key for error in errors}
    errors += [p for p in _problems(name, data, file, text, whole, expands) if not p.key or p.key not in told]
    return data, sorted(errors, key=_line)


def lacking(name: str, data: Mapping[str, Any], file: str | None) -> list[UnitFileError]:
    """What is wrong with a unit whose files are right, each by itself: what none of them says."""
    return sorted(_invalid(name, data, file, ""), key=_line)


def locate(text: str, section: str, key: str | None = None) -> int | None:
    """The line on which a setting (or, without a key, a section) stands, from 1; None if it does not."""
    wanted = (section,) if key is None else (section, key)
    best: tuple[int, int] | None = None
    for line, path in _places(text):
        depth = len(path) if path == wanted[: len(path)] else len(wanted) if path[: len(wanted)] == wanted else 0
        if depth > (best[0] if best else 0):
            best = depth, line
    return best[1] if best else None


def _line(error: UnitFileError) -> float:
    return error.line or (0 if error.key is None else inf)


def _load(text: str, file: str | None) -> tuple[dict[str, Any], list[UnitFileError]]:
    try:
        return tomllib.loads(text), []
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        line = int(match[1]) if match else text.count("\n") + 1
        what = re.sub(r" *\(at .*\)$", "", str(error))
        at = f" at column {match[2]}" if match else " at the end of the file"
        if "overwrite" in what or "twice" in what:
            what, at = "a key or section stands twice", ""
        message = f"this is not TOML: {what[:1].lower()}{what[1:]}{at}."
        return {}, [UnitFileError(message, file=file, line=line, hint='A setting is written key = value, texts in "".')]


# --- all problems of one file -----------------------------------------------------------------------------------------


def _problems(
    name: str, data: Mapping[str, Any], file: str | None, text: str, whole: bool = True, replicates: bool = False
) -> Iterator[UnitFileError]:
    if whole:
        yield from misnamed(name, file)
    known: dict[str, Any] = {}
    if "agent" not in data and any(section not in SECTIONS for section in data):
        known["agent"] = _SOME_AGENT  # it is there, misspelt or without its header; that is told below
    for section, value in data.items():
        if section not in SECTIONS:
            yield _unknown_section(section, file, locate(text, section))
        elif not isinstance(value, Mapping):
            message, hint = f"expected a table, got {_show(value)}.", f"Write [{section}] on a line of its own."
            yield UnitFileError(message, file=file, line=locate(text, section), key=f"[{section}]", hint=hint)
            known[section] = _SOME_AGENT if section == "agent" else {}
        else:
            unknown = [key for key in value if key not in _fields(section)]
            known[section] = {key: item for key, item in value.items() if key not in unknown}
            for key in unknown:
                yield _unknown_key(section, key, file, locate(text, section, key))
    if "replicas" in known.get("agent", ()) and not replicates:
        yield _no_template(name, file, locate(text, "agent", "replicas"))
    yield from _invalid(name, known, file, text, whole)


def _invalid(
    name: str, data: Mapping[str, Any], file: str | None, text: str, whole: bool = True
) -> Iterator[UnitFileError]:
    try:
        validated(name, data, file)
    except ValidationError as error:
        seen = set()
        for detail in error.errors(include_url=False):
            if detail["type"] == "missing" and not whole:
                continue
            section, key = str(detail["loc"][0]), str(detail["loc"][1]) if len(detail["loc"]) > 1 else None
            if (section, key) not in seen:
                seen.add((section, key))
                yield _invalid_value(section, key, detail, file, text)


def validated(name: str, data: Mapping[str, Any], file: str | None) -> Unit:
    """The unit, by JSON: the one mode that is strict about types and still takes a list for a tuple."""
    whole = {**data, "name": name, "file": file}
    return Unit.model_validate_json(json.dumps(whole, default=_no_json), strict=True)


def _no_json(value: object) -> dict[str, str]:
    """TOML's dates and times, which no setting takes: a table fits none either."""
    return {"not a setting": str(value)}


def misnamed(name: str, file: str | None) -> list[UnitFileError]:
    """What is wrong with the name that a unit has by its file."""
    bad = _bad_name(name)
    return [] if bad is None else [UnitFileError(bad[0], file=file, hint=bad[1])]


def _bad_name(name: str) -> tuple[str, str] | None:
    if name in SYSTEM_UNITS:
        return f"{name!r} is the name of one of agentd's own units. Refusing.", "Name the unit otherwise."
    if NAME.fullmatch(name) or template.is_template(name):
        return None
    what = "is too long" if NAME.fullmatch(name[:63]) else "is not a unit name"
    rule = "A name is 1 to 63 characters a-z 0-9 _ - and begins with a letter or digit"
    return f"{name!r} {what}.", f"{rule}{_suggest_name(name)}."


def _suggest_name(name: str) -> str:
    simple = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:63]
    return f", for example {simple!r}" if NAME.fullmatch(simple) else ""


def _unknown_specifier(path: tuple[str, ...], word: str, file: str | None, text: str) -> UnitFileError:
    section, key = path[0], path[1] if len(path) > 1 else None
    where = f"[{section}] {key}" if key else section
    message = f"{word} means nothing: in a template %i is the instance, and %% a percent sign."
    line = locate(text, section, key)
    return UnitFileError(message, file=file, line=line, key=where, hint=f"For a percent sign as such write %{word}.")


def _no_template(name: str, file: str | None, line: int | None) -> UnitFileError:
    base, _, instance = name.partition("@")
    hint = f"Set it in {base}@.toml." if instance else f"Name the file {base}@.toml: its units are {base}@1, {base}@2 …"
    what = "an instance" if instance else f"{base!r}"
    message = f"only a template has replicas, and {what} is none."
    return UnitFileError(message, file=file, line=line, key="[agent] replicas", hint=hint)


def _unknown_section(section: str, file: str | None, line: int | None) -> UnitFileError:
    homes = [home for home in SECTIONS if section in _fields(home)]
    if section in PLANNED:
        message, hint = "planned, not in this version.", "Remove the section; nothing is accepted and ignored."
    elif homes:
        message, hint = "this setting stands outside of its section.", f"Move it under [{homes[0]}]."
        return UnitFileError(message, file=file, line=line, key=section, hint=hint)
    elif section in ("name", "file"):
        message, hint = "no such section.", "The name of a unit is the name of its file; remove this line."
        return UnitFileError(message, file=file, line=line, key=section, hint=hint)
    else:
        message = "no such section."
        hint = f"{_nearest(section, SECTIONS, '[{}]')}Sections are {', '.join(f'[{s}]' for s in SECTIONS)}."
    return UnitFileError(message, file=file, line=line, key=f"[{section}]", hint=hint)


def _unknown_key(section: str, key: str, file: str | None, line: int | None) -> UnitFileError:
    fields = tuple(_fields(section))
    homes = [home for home in SECTIONS if key in _fields(home)]
    near = _nearest(key, fields, "{}")
    if key in PLANNED.get(section, ()):
        message, hint = "planned, not in this version.", "Remove the key; nothing is accepted and ignored."
    elif homes and not near:
        message, hint = f"no such setting in [{section}].", f"It belongs to [{homes[0]}]."
    else:
        message, hint = "no such setting.", f"{near}[{section}] takes {', '.join(fields)}."
    return UnitFileError(message, file=file, line=line, key=f"[{section}] {key}", hint=hint)


def _invalid_value(
    section: str, key: str | None, detail: Mapping[str, Any], file: str | None, text: str
) -> UnitFileError:
    if detail["type"] == "missing" and len(detail["loc"]) > 2:
        where = f"[{section}] {key}"
        message = f"{detail['loc'][-1]}: missing."
        return UnitFileError(message, file=file, line=locate(text, section, key), key=where, hint=_help(section, key))
    if detail["type"] == "missing":
        example = 'Say what to run, for example exec = ["python3", "agent.py"] under [agent].'
        where = f"[{section}] {key or 'exec'}"
        return UnitFileError("missing.", file=file, line=locate(text, section), key=where, hint=example)
    item = next((part + 1 for part in detail["loc"][2:] if isinstance(part, int)), None)
    entry = next((part for part in detail["loc"][2:] if isinstance(part, str)), None)
    which = f"item {item}: " if item else f"{entry}: " if entry else ""
    where = f"[{section}] {key}" if key else f"[{section}]"
    line = locate(text, section, key)
    hint = _instead(key, detail) or _help(section, key)
    return UnitFileError(f"{which}{in_words(detail)}", file=file, line=line, key=where, hint=hint)


def _instead(key: str | None, detail: Mapping[str, Any]) -> str | None:
    """What to write instead of a value of the wrong type, where it is plain what was meant."""
    got = detail["input"]
    if len(detail["loc"]) != 2 or not isinstance(got, str) or not got.strip():
        return None
    if detail["type"] == "tuple_type":
        return f"Write {key} = {json.dumps(got.split(), ensure_ascii=False)}"
    number = detail["type"] in ("int_type", "float_type") and re.fullmatch(r"-?\d+", got)
    if number or (detail["type"] == "bool_type" and got in ("true", "false")):
        return f"Write {key} = {got}, without quotes."
    return None


def in_words(detail: Mapping[str, Any]) -> str:
    """What is wrong with a value, in words, from one of pydantic's errors."""
    kind, context, got = detail["type"], detail.get("ctx", {}), _show(detail["input"])
    if kind == "value_error":
        return f"{context['error']}."
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {got}."
    if kind == "literal_error":
        expected = context["expected"].replace("'", "").replace(" or ", ", ")
        return f"expected one of {expected}, got {got}."
    if kind == "extra_forbidden":
        return "no such key."
    if kind == "model_type":
        return f"expected a text or a table, got {got}."
    if kind == "greater_than_equal":
        return f"{got} is too small, at least {context['ge']}."
    if kind == "less_than_equal":
        return f"{got} is too large, at most {context['le']}."
    if kind == "too_short":
        return "it is empty."
    return f"{detail['msg']}, got {got}."


def _help(section: str, key: str | None) -> str | None:
    field = _fields(section).get(key or "")
    if field is None or not field.description:
        return None
    sentence, dot, _ = field.description.partition(". ")
    return f"{key}: {sentence}{dot.strip()}"


def _fields(section: str) -> Mapping[str, Any]:
    kind = Unit.model_fields[section].annotation
    assert isinstance(kind, type)
    assert issubclass(kind, Section)
    return kind.model_fields


def _nearest(word: str, words: Iterable[str], form: str) -> str:
    near = difflib.get_close_matches(word.lower(), list(words), n=1)
    return f"Did you mean {form.format(near[0])}? " if near else ""


def _show(value: object) -> str:
    """A value as TOML has it, short."""
    if isinstance(value, dict):
        return f"the date or time {value['not a setting']}" if "not a setting" in value else "a table"
    if isinstance(value, list | tuple):
        return "a list"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 40 else shown[:39] + "…"


# --- where things stand -----------------------------------------------------------------------------------------------

_HEADER = re.compile(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")
_SETTING = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


def _places(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, full path) of each table header and each setting that begins a line."""
    table: tuple[str, ...] = ()
    quoted = False
    for number, line in enumerate(text.splitlines(), 1):
        inside, quoted = quoted, quoted ^ (len(re.findall(r'"""|\'\'\'', line)) % 2 == 1)
        if inside:
            continue
        if match := _HEADER.match(line):
            table = _path(match[1])
            yield number, table
        elif match := _SETTING.match(line):
            yield number, table + _path(match[1])


def _path(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
