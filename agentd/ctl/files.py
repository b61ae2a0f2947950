"""Commands on unit files: check, deploy, explain. Validation itself is the model's and the daemon's."""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from agentd.ctl import paint
from agentd.ctl.client import SLOW, decoded, unit_route
from agentd.ctl.options import JsonFlag, Reason, client_of, print_json
from agentd.ctl.paint import line
from agentd.errors import BadInput, DaemonUnreachable

app = typer.Typer()
Paths = Annotated[list[Path], typer.Argument(metavar="PATH", help="Unit files, or directories of them.")]
Json = dict[str, Any]


@app.command(rich_help_panel="Unit files")
def check(ctx: typer.Context, paths: Paths, json: JsonFlag = False) -> None:
    """Check unit files and touch nothing.

    Exit code 2 when one is wrong.
    """
    files, unread = _read(paths)
    body = {"files": files}
    try:
        text = client_of(ctx).post("/v1/check", body, timeout=60.0)
        note = ""
    except DaemonUnreachable:
        from agentd.ctl import offline

        text = jsonlib.dumps(offline.check(files)).encode()
        note = "No daemon answers: what this host can enforce was not checked."
    answer, text = _with(unread, text)
    if json:
        print_json(text)
    else:
        _print_findings(answer["findings"])
        print(_verdict(answer, len(files) + len(unread)))
        if note:
            print(paint.paint(note, "dim", paint.coloured()))
    _fail_on_errors(answer)


@app.command(rich_help_panel="Unit files")
def deploy(ctx: typer.Context, paths: Paths, reason: Reason = None, json: JsonFlag = False) -> None:
    """Install unit files, then start or restart what changed."""
    files, unread = _read(paths)
    answer, text = _with(unread, client_of(ctx).post("/v1/deploy", {"files": files}, reason=reason, timeout=SLOW))
    if json:
        print_json(text)
    else:
        _print_findings(answer["findings"])
        for change in ("started", "restarted", "removed", "unchanged"):
            if names := answer.get(change):
                print(f"{paint.paint(f'{change:<11}', 'dim', paint.coloured())}{', '.join(map(line, names))}")
        _print_templates(answer)
    _fail_on_errors(answer)


@app.command(rich_help_panel="Unit files")
def explain(
    ctx: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(metavar="[UNIT|FILE]", help="A unit, or a file that need not be installed; else all settings."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Print every setting of a unit: value, source, meaning.

    Without a unit: every setting that there is.
    """
    if target is None:
        from agentd.ctl import offline

        reference = offline.reference()
        print(jsonlib.dumps({"reference": reference}) if json else reference, end="\n" if json else "")
        return
    if target.endswith(".toml") or "/" in target:
        from agentd.ctl import offline

        path = Path(target).absolute()
        text = jsonlib.dumps(offline.explain(path, _text(path))).encode()
    else:
        text = client_of(ctx).get(unit_route(target))
    if json:
        print_json(text)
    else:
        from agentd.ctl.explained import explained

        print("\n".join(explained(decoded(text), paint.width(), paint.coloured())))


def _print_templates(answer: Json) -> None:
    """A template of which nothing runs yet: how to change that."""
    names = {name for change in ("started", "restarted", "unchanged") for name in answer.get(change) or ()}
    for template in answer.get("templates") or ():
        if not any(name.startswith(template) for name in names):
            print(f"{line(template)}: installed; no instance yet. Start one: agentctl start {line(template)}NAME")


def _read(paths: list[Path]) -> tuple[list[Json], list[Json]]:
    """The files as the API takes them, and a finding for each that cannot be read; a directory stands for its files.

    BadInput where nothing can be read: then there is nothing to ask for.
    """
    files: list[Path] = []
    for path in paths:
        found = [*sorted(path.glob("*.toml")), *sorted(path.glob("*.toml.d/*.toml"))] if path.is_dir() else [path]
        if not found:
            raise BadInput(f"{path}: holds no unit file (*.toml).", hint="Name a file, or a directory that has some.")
        files += found
    read, unread = [], []
    for path in files:
        try:
            read.append({"path": str(path.absolute()), "text": _text(path)})
        except BadInput as error:
            if len(files) == 1:
                raise
            where = {"unit": _owner(path), "file": str(path.absolute()), "line": None, "key": None}
            message = error.message.removeprefix(f"{path}: ")
            unread.append({**where, "message": message, "hint": error.hint, "severity": "error"})
    return read, unread


def _owner(path: Path) -> str:
    """The unit or template that a file belongs to."""
    from agentd.model.fileset import owner_of

    return owner_of(str(path.absolute()))[0]


def _with(unread: list[Json], text: bytes) -> tuple[Json, bytes]:
    """The daemon's answer together with what we could not send it."""
    answer: Json = decoded(text)
    if not unread:
        return answer, text
    answer["findings"] = [*unread, *answer["findings"]]
    return answer, jsonlib.dumps(answer).encode()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}.", hint="Name a unit file, or a directory of them.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: byte {error.start} is not UTF-8.", hint="Save it as UTF-8 text.") from error


def _print_findings(findings: list[Json]) -> None:
    """Errors first; each with its place, what is wrong, and what to do."""
    colour = paint.coloured()
    for finding in sorted(_once(findings), key=lambda f: f["severity"] != "error"):
        wrong = finding["severity"] == "error"
        print(f"{paint.paint(finding['severity'], 'red' if wrong else 'yellow', colour)}  {_where(finding)}")
        if finding.get("hint"):
            print(f"{' ' * len(finding['severity'])}  {line(finding['hint'])}")


def _once(findings: list[Json]) -> list[Json]:
    """A warning that has no line and is the same for several files is of this host, not of them: it is told once."""
    same: dict[str, list[Json]] = {}
    for number, finding in enumerate(findings):
        own = finding["severity"] == "error" or finding.get("line") is not None
        same.setdefault(f"{number}" if own else f"warning {_bare(finding)}", []).append(finding)
    return [group[0] if len(group) == 1 else _of_all(group) for group in same.values()]


def _bare(finding: Json) -> str:
    """Its message without the file."""
    return str(finding["message"]).removeprefix(f"{finding.get('file')}:").strip()


def _of_all(group: list[Json]) -> Json:
    return {**group[0], "file": _plural(len(group), "file"), "key": None, "message": _bare(group[0])}


def _where(finding: Json) -> str:
    """``file:line: key: message``, unless the message already begins so."""
    message = line(finding["message"])
    if not finding.get("file"):
        return message
    full = line(finding["file"])
    if message.startswith(full):
        return _near(full) + message[len(full) :]
    place = _near(full) + (f":{finding['line']}" if finding.get("line") else "")
    key = finding.get("key")
    return f"{place}: {line(key)}: {message}" if key and line(key) not in message else f"{place}: {message}"


def _near(file: str) -> str:
    """The file as seen from here, where that is shorter."""
    near = os.path.relpath(file) if os.path.isabs(file) else file
    return near if len(near) < len(file) and not near.startswith("../..") else file


def _verdict(answer: Json, files: int) -> str:
    findings = _once(answer["findings"])
    errors = sum(f["severity"] == "error" for f in findings)
    warnings = len(findings) - errors
    parts = [_plural(files, "file")] + [_plural(n, word) for n, word in ((errors, "error"), (warnings, "warning")) if n]
    return ", ".join(parts) if len(parts) > 1 else f"{parts[0]}: all well"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _fail_on_errors(answer: Json) -> None:
    if any(finding["severity"] == "error" for finding in answer["findings"]):
        raise typer.Exit(BadInput.exit_code)
