"""agentctl's entry: which file a command lives in, and how an error ends. Commands themselves live one noun per file.

Only the file of the command that was asked for is imported: start-up time is felt by a person.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from agentd.ctl import paint
from agentd.ctl.client import Client
from agentd.ctl.light import lighten
from agentd.errors import AgentdError, BadInput

COMMANDS: dict[str, tuple[str, ...]] = {
    "fleet": ("up", "down"),
    "status": ("status", "list"),
    "logs": ("logs",),
    "journal": ("journal",),
    "doctor": ("doctor",),
    "units": ("run", "start", "stop", "restart", "kill", "remove"),
    "files": ("check", "deploy", "explain"),
    "cat": ("cat",),
    "send": ("send",),
    "dlq": ("dlq",),
    "budget": ("budget",),
}
"""File → its commands, in the order of the help page."""
GROUPS = {"dlq": "Messages", "budget": "Units"}
"""Files whose commands are subcommands of the file's name → their panel in the help page."""
PIPE_CLOSED = 141
INTERRUPTED = 130

Socket = Annotated[
    Path | None,
    typer.Option("--socket", envvar="AGENTD_SOCKET", metavar="PATH", help="The daemon's control socket."),
]


def main() -> None:
    """Run agentctl with the process's arguments and exit with the code of DESIGN section 6."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Do what the arguments say; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        code = _dispatch(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return PIPE_CLOSED
    except SystemExit as end:  # typer's own way with a closed pipe
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return PIPE_CLOSED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except AgentdError as error:
        _complain(error, "--json" in _before_dashes(args))
        return error.exit_code
    return code


def _dispatch(args: list[str]) -> int:
    from typer.main import get_command

    name = _command(args)
    if name is None and (not args or "--help" in args):
        from agentd.ctl.manual import manual

        print("\n".join(manual(_app(None), paint.coloured())))
        return 0
    if name == "send":
        from agentd.ctl.send import with_wait

        args = with_wait(args)
    if name in GROUPS and args[-1] == name:
        args = [*args, "--help"]
    command = get_command(_app(name))
    lighten(command)
    try:
        code = command.main(args=args, prog_name="agentctl", standalone_mode=False)
    except _usage_error() as error:
        raise _explained(error, name) from error
    return code if isinstance(code, int) else 0


def _app(name: str | None) -> typer.Typer:
    """The whole application, or only what the named command needs."""
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(_root)
    files = [file for file, names in COMMANDS.items() if name in names] or list(COMMANDS)
    for file in files:
        commands = import_module(f"agentd.ctl.{file}").app
        if file in GROUPS:
            app.add_typer(commands, name=file, rich_help_panel=GROUPS[file])
        else:
            app.add_typer(commands)
    return app


def _tell_version(asked: bool) -> None:
    if asked:
        from agentd import __version__

        print(f"agentctl {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_tell_version)]


def _root(ctx: typer.Context, socket: Socket = None, version: Version = False) -> None:
    from agentd.ctl import place

    path = socket.absolute() if socket else place.control_socket(place.runtime())
    ctx.obj = Client(path, named=socket is not None)


def _command(args: list[str]) -> str | None:
    """The first word that is neither an option nor the value of --socket."""
    words = iter(args)
    for word in words:
        if word == "--socket":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None


def _before_dashes(args: list[str]) -> list[str]:
    return args[: args.index("--")] if "--" in args else args


def _usage_error() -> type[Exception]:
    """typer's base of all complaints about a command line; it has no public name of its own."""
    kinds = [kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"]
    assert issubclass(kinds[0], Exception)
    return kinds[0]


def _explained(error: Exception, name: str | None) -> BadInput:
    message = str(error.format_message() if hasattr(error, "format_message") else error).strip()
    message = message[:1].lower() + message[1:]
    known = {command for names in COMMANDS.values() for command in names}
    if "--socket" in message and name:
        return BadInput(message, hint=f"--socket is for agentctl itself: agentctl --socket PATH {name} …")
    return BadInput(message, hint=f"See `agentctl {f'{name} ' if name in known else ''}--help`.")


def _complain(error: AgentdError, as_json: bool) -> None:
    """``agentctl: message`` and the hint on stderr; with --json the error as the API sends it, on stdout."""
    if as_json:
        import json

        print(json.dumps({"error": error.to_wire()}))
        return
    print(f"agentctl: {paint.harmless(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  {paint.harmless(error.hint)}", file=sys.stderr)


if __name__ == "__main__":
    main()
