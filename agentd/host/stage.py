"""Copies of Python environments where a unit's uid can reach them.

A virtual environment whose interpreter lies below a home of mode 0700 cannot be executed by any other uid. As root we
put the interpreter, its standard library and the environment into ``<state>/stage/<digest>/{base,venv}``: hard links
where the file is root's and readable by all, else copies; owned by root, writable by nobody else. The digest names what
was staged, so a changed environment gets a new stage and an unchanged one is found again by a few stats.
"""

from __future__ import annotations

import compileall
import fcntl
import glob
import hashlib
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import agentd
from agentd.errors import HostCannot
from agentd.host.reach import EXECUTE, READ, closed_component

_NAME = re.compile(r"python(\d+(\.\d+)?)?")
_VERSION = re.compile(r"python\d+\.\d+")
_SKIPPED = frozenset({"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages"})
_OWN_EDITABLE = re.compile(r"__editable__.*agentd.*")
_NOBODY = 65_534
KEEP = 2
"""Stages kept although nothing runs from them."""
FRESH = 1.0
"""Seconds for which an environment that was just looked at counts as unchanged: a fleet starts at one look."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that a path leads to."""

    venv: Path | None
    """The directory with pyvenv.cfg; None for a base interpreter."""
    base: Path
    """Its prefix: bin/, lib/ and lib/pythonX.Y are below."""
    program: str
    """pythonX.Y: the program below base/bin and the name of the library directory."""
    base_packages: bool
    """The site-packages of the base belong to it."""

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return (self.venv or self.base) / "lib" / self.program / "site-packages"

    @property
    def top(self) -> Path:
        """The directory that contains its programs and packages."""
        return self.venv or self.base


def interpreter(path: Path) -> Interpreter | None:
    """The interpreter that ``path`` (bin/python of a venv or of an installation) leads to; None if it is no Python."""
    if not _NAME.fullmatch(path.name) or path.parent.name != "bin":
        return None
    real = Path(os.path.realpath(path))
    base = real.parent.parent
    program = real.name if _VERSION.fullmatch(real.name) else _program(base)
    if program is None or not os.path.isfile(base / "lib" / program / "os.py"):
        return None
    config = path.parent.parent / "pyvenv.cfg"
    if not os.path.isfile(config):
        return Interpreter(None, base, program, base_packages=True)
    shared = re.search(
        r"^include-system-site-packages\s*=\s*true\s*$", config.read_text(), re.MULTILINE | re.IGNORECASE
    )
    return Interpreter(path.parent.parent, base, program, base_packages=shared is not None)


@cache
def ours() -> Interpreter | None:
    """The interpreter that runs this process: what it was when we began, whatever becomes of its files."""
    return interpreter(Path(sys.prefix) / "bin" / "python")


def _program(base: Path) -> str | None:
    libraries = glob.glob(f"{glob.escape(str(base))}/lib/python3.*/os.py")  # passes over what we may not see
    found = sorted(name for name in (Path(p).parent.name for p in libraries) if _VERSION.fullmatch(name))
    return found[-1] if found else None


def closed(python: Interpreter, uid: int, gid: int, groups: tuple[int, ...] = ()) -> Path | None:
    """The first component that keeps the ids from using this interpreter and its packages; None if it is open."""
    needed = [python.top / "bin" / "python", python.base / "lib" / python.program / "os.py", python.packages]
    if not os.path.exists(needed[0]):
        needed[0] = python.base / "bin" / python.program
    package = Path(agentd.__file__)
    if python == ours():
        needed.append(package)
    for path in needed:
        want = READ if path.suffix == ".py" else READ | EXECUTE
        if os.path.exists(path) and (component := closed_component(path, uid, gid, groups, want)):
            return component
    return None


def require_roots(python: Interpreter) -> None:
    """HostCannot where anybody but root could change what a stage would publish as root's."""
    for top in (python.top, python.base):
        owner = top.stat().st_uid
        if owner != 0:
            raise HostCannot(
                f"{top} belongs to uid {owner} and is closed to the unit's uid",
                hint="Open it (chmod o+x on the way to it), run the unit as its owner with `user`, or install "
                "the environment as root.",
            )


class Slow(Exception):
    """It would take too long for whoever asked ``at_once``."""


class Stage:
    """The stages of one fleet, below one directory."""

    def __init__(self, directory: Path) -> None:
        # A stage names itself in its files, and processes name it by the real path: it may be a link to another disk.
        self.directory = Path(os.path.realpath(directory))
        self._fresh: dict[Interpreter, tuple[float, Path]] = {}
        self.hurried = False
        """Whoever asks cannot wait: what is not known at once is ``Slow``."""

    def at_once(self) -> Stage:
        """The same stages for somebody who cannot wait for a look at the environment, let alone for a copy."""
        other = Stage(self.directory)
        other._fresh, other.hurried = self._fresh, True
        return other

    def translate(self, path: Path, python: Interpreter) -> Path:
        """Where ``path``, below the interpreter's own directories, stands in its stage (made if missing)."""
        root = self.stage(python)
        if python.venv is not None and path.is_relative_to(python.venv):
            return root / "venv" / path.relative_to(python.venv)
        staged = root / "base" / path.relative_to(python.base) if path.is_relative_to(python.base) else path
        return staged if staged.exists() else path

    def bin(self, python: Interpreter) -> Path:
        """The staged directory of programs."""
        return self.stage(python) / ("venv" if python.venv else "base") / "bin"

    def stage(self, python: Interpreter) -> Path:
        """The staged copy, made now if there is none of this very state. Raises HostCannot with the reason."""
        seen, root = self._fresh.get(python, (-FRESH, Path()))
        if time.monotonic() - seen < FRESH and root.is_dir():
            return root
        if self.hurried:
            raise Slow(str(python.top))
        root = self.directory / _digest(python)
        self._fresh[python] = (time.monotonic(), root)
        if root.is_dir():
            os.utime(root)  # used: the last to be cleaned away
            return root
        require_roots(python)
        try:
            with self._locked():
                if not root.is_dir():
                    self._make(python, root)
                    self._clean(root)
        except OSError as error:
            raise HostCannot(
                f"{error.filename or root}: cannot stage {python.top} for the units' uids: {error.strerror}",
                hint="Make room, or open the environment to other users (chmod o+x on the way to it).",
            ) from error
        return root

    @contextmanager
    def _locked(self) -> Iterator[None]:
        _directory(self.directory)
        with open(self.directory / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make(self, python: Interpreter, root: Path) -> None:
        fresh = self.directory / f".new-{root.name}"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            _directory(fresh)
            if python.venv is None or not _open_to_all(python):
                _base(python, fresh / "base", root)
            if python.venv is not None:
                _venv(python, fresh / "venv", root)
            if python == ours():
                _package(fresh / ("venv" if python.venv else "base") / "lib" / python.program / "site-packages")
            fresh.rename(root)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise

    def _clean(self, newest: Path) -> None:
        """Remove old stages that nothing runs from."""
        stages = sorted(
            (p for p in self.directory.iterdir() if p.is_dir() and not p.name.startswith(".") and p != newest),
            key=lambda p: p.stat().st_mtime,
            reverse=True,
        )
        if len(stages) < KEEP:
            return
        used = list(_traces())
        for old in stages[KEEP - 1 :]:
            if not any(f"{old}/" in trace for trace in used):
                shutil.rmtree(old, ignore_errors=True)


def _traces() -> Iterator[str]:
    """What tells that a process uses a stage: its program, and its environment (the PATH of every unit)."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield os.readlink(process / "exe")
            yield (process / "environ").read_text(errors="replace")


def _digest(python: Interpreter) -> str:
    """Names the present state of the environment by what its changes touch."""
    # A stage is trusted within one boot: of one from before a power cut, files may be empty.
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    digest = hashlib.sha256(f"4\0{boot}{python}\0{os.path.realpath(python.top)}\0".encode())
    for path in _witnesses(python):
        try:
            info = path.stat()
        except OSError:
            continue
        digest.update(f"{path}\0{info.st_mtime_ns}\0{info.st_size}\0{info.st_ino}\0".encode())
    return digest.hexdigest()[:16]


def _witnesses(python: Interpreter) -> Iterator[Path]:
    lib = python.base / "lib" / python.program
    yield from (python.base / "bin" / python.program, lib / "os.py", lib / "lib-dynload", lib)
    yield from (python.top / "pyvenv.cfg", python.top / "bin")
    for packages in {python.packages, *([lib / "site-packages"] if python.base_packages else [])}:
        yield packages
        yield from (record / "RECORD" for record in sorted(packages.glob("*.dist-info")))
    if python == ours() and not Path(agentd.__file__).is_relative_to(python.top):
        for directory, names, files in os.walk(Path(agentd.__file__).parent):
            names[:] = sorted(n for n in names if n != "__pycache__")
            yield from (Path(directory) / f for f in sorted(files))


def _open_to_all(python: Interpreter) -> bool:
    """The base needs no stage of its own: a host's /usr, say, with only the environment in a closed place."""
    program, library = python.base / "bin" / python.program, python.base / "lib" / python.program / "os.py"
    return all(
        closed_component(path, _NOBODY, _NOBODY, (), want) is None
        for path, want in ((program, READ | EXECUTE), (library, READ))
    )


def _base(python: Interpreter, to: Path, final: Path) -> None:
    library = python.base / "lib"
    _directory(to, to / "bin", to / "lib")
    program = to / "bin" / python.program
    _copy(python.base / "bin" / python.program, program)
    _relocate(program, python.base / "lib")
    for name in ("python", "python3"):
        (to / "bin" / name).symlink_to(python.program)
    for shared in library.glob("libpython*.so*"):
        _put(shared, to / "lib" / shared.name)

    def wanted(entry: os.DirEntry[str], depth: int) -> bool:
        if depth == 0 and entry.name == "site-packages":
            return python.base_packages
        return depth > 0 or not (entry.name in _SKIPPED or entry.name.startswith("config-"))

    _tree(library / python.program, to / "lib" / python.program, wanted)
    _directory(to / "lib" / python.program / "site-packages")
    if python.venv is None:
        _programs(python, to / "bin", final / "base" / "bin")


def _relocate(program: Path, library: Path) -> None:
    """Make an absolute run path of the staged program relative: it would lead back to the closed directory."""
    content = program.read_bytes()
    old, new = os.fsencode(library) + b"\0", b"$ORIGIN/../lib\0"
    if old in content and len(old) >= len(new):
        program.write_bytes(content.replace(old, new.ljust(len(old), b"\0")))


def _venv(python: Interpreter, to: Path, final: Path) -> None:
    assert python.venv is not None
    _directory(to, to / "bin", to / "lib", to / "lib" / python.program)
    base = python.base if _open_to_all(python) else final / "base"
    lines = [
        f"home = {base / 'bin'}",
        f"include-system-site-packages = {'true' if python.base_packages else 'false'}",
        f"version = {python.program.removeprefix('python')}",
    ]
    _write(to / "pyvenv.cfg", "\n".join(lines) + "\n", 0o644)
    for name in ("python", "python3", python.program):
        (to / "bin" / name).symlink_to(base / "bin" / python.program)
    own = python == ours() and not Path(agentd.__file__).is_relative_to(python.venv)

    def wanted(entry: os.DirEntry[str], depth: int) -> bool:
        return not (own and depth == 0 and (_OWN_EDITABLE.fullmatch(entry.name) or entry.name == "agentd"))

    _tree(python.packages, to / "lib" / python.program / "site-packages", wanted)
    _programs(python, to / "bin", final / "venv" / "bin")


def _programs(python: Interpreter, to: Path, final: Path) -> None:
    """The other programs of the environment; scripts get the staged interpreter in their first line."""
    with os.scandir(python.top / "bin") as entries:
        for entry in entries:
            target = to / entry.name
            if os.path.lexists(target) or not entry.is_file(follow_symlinks=False):
                continue
            with open(entry.path, "rb") as stream:
                first = stream.readline(256)
            if first.startswith(b"#!" + os.fsencode(python.top)):
                text = Path(entry.path).read_text()
                _write(target, f"#!{final / 'python'}\n" + text.partition("\n")[2], 0o755)
            else:
                _put(Path(entry.path), target)


def _package(packages: Path) -> None:
    """agentd itself as a real package, where the environment only points at its sources."""
    source = Path(agentd.__file__).parent
    if (packages / "agentd").exists() or not source.exists():
        return
    _tree(source, packages / "agentd", lambda entry, depth: not entry.name.startswith("."), _copy)
    compileall.compile_dir(packages / "agentd", quiet=2, workers=1)


def _tree(
    source: Path,
    to: Path,
    wanted: Callable[[os.DirEntry[str], int], bool],
    put: Callable[[Path, Path], None] | None = None,
    depth: int = 0,
) -> None:
    _directory(to)
    with os.scandir(source) as entries:
        for entry in entries:
            if not wanted(entry, depth):
                continue
            target = to / entry.name
            if entry.is_symlink():
                target.symlink_to(os.readlink(entry.path))
            elif entry.is_dir(follow_symlinks=False):
                _tree(Path(entry.path), target, wanted, put, depth + 1)
            elif entry.is_file(follow_symlinks=False):
                (put or _put)(Path(entry.path), target)


def _put(source: Path, to: Path) -> None:
    """A hard link where the original is as safe and as readable as a copy would be, else a copy."""
    info = source.lstat()
    if stat.S_ISLNK(info.st_mode):
        to.symlink_to(source.readlink())
        return
    if info.st_uid == 0 and info.st_mode & 0o444 == 0o444 and not info.st_mode & 0o022:
        try:
            os.link(source, to, follow_symlinks=False)
        except OSError:
            pass  # another file system, too many links: copy
        else:
            return
    _copy(source, to)


def _copy(source: Path, to: Path) -> None:
    """A copy of root's, readable by all, with the original's time (compiled files are valid by it)."""
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as original, open(to, "xb") as copy:
        shutil.copyfileobj(original, copy, 1 << 20)
        info = os.fstat(original.fileno())
    to.chmod(0o755 if info.st_mode & 0o100 else 0o644)
    os.utime(to, ns=(info.st_atime_ns, info.st_mtime_ns))


def _write(path: Path, text: str, mode: int) -> None:
    path.write_text(text)
    path.chmod(mode)


def _directory(*paths: Path) -> None:
    for path in paths:
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
