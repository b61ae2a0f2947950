"""Python environments copied where a unit's uid can reach them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

import pytest

from agentd.errors import HostCannot
from agentd.host import stage
from agentd.host.stage import Stage
from tests.waiting import wait_until

UID = 69_998
pytestmark = pytest.mark.root


def run_as(uid: int, *argv: str | Path, cwd: str = "/") -> str:
    """What the program prints when that uid runs it."""
    done = subprocess.run(
        [str(a) for a in argv],
        user=uid,
        group=uid,
        extra_groups=[],
        cwd=cwd,
        env={"HOME": "/"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def ready(stage_directory: Path) -> Stage:
    """Our own environment, staged once for the tests that only look."""
    made = Stage(stage_directory)
    made.stage(own())
    return made


@pytest.fixture
def closed_venv(short_dir: Path) -> Path:
    """An environment below a directory of mode 0700, with one module and one script."""
    home = short_dir / "home"
    home.mkdir(mode=0o700)
    venv.create(home / "venv", symlinks=True)
    python = stage.interpreter(home / "venv/bin/python")
    assert python is not None
    (python.packages / "tool.py").write_text("def main():\n    print('tool', __file__)\n")
    script = home / "venv/bin/tool"
    script.write_text(f"#!{home}/venv/bin/python\nimport tool\ntool.main()\n")
    script.chmod(0o700)
    return home / "venv"


def own() -> stage.Interpreter:
    python = stage.ours()
    assert python is not None
    return python


def of(directory: Path) -> stage.Interpreter:
    python = stage.interpreter(directory / "bin/python")
    assert python is not None
    return python


def test_a_staged_python_runs_as_a_uid_with_the_sdk(ready: Stage) -> None:
    """Another uid runs the staged interpreter and imports agentd.sdk from the stage, not from the sources."""
    python = ready.bin(own()) / "python"
    code = "import agentd.sdk, ssl, sys; print(agentd.sdk.__file__, sys.prefix, sys.base_prefix)"
    module, prefix, base = run_as(UID, python, "-c", code).split()
    root = str(ready.stage(own()))
    assert [p.startswith(root) for p in (module, prefix, base)] == [True, True, True]


def test_a_staged_program_of_ours_runs_as_a_uid(ready: Stage) -> None:
    """Scripts of the environment name the staged interpreter in their first line."""
    script = ready.bin(own()) / "pip"
    if not script.exists():
        pytest.skip("no script in this environment")
    assert "python" in run_as(UID, script, "--version")


def test_nobody_else_may_write_a_stage(ready: Stage) -> None:
    """Everything in a stage is root's and writable by root alone."""
    for directory, names, files in os.walk(ready.directory):
        for name in (".", *names, *files):
            info = (Path(directory) / name).lstat()
            assert info.st_uid == 0, name
            assert stat.S_ISLNK(info.st_mode) or not info.st_mode & 0o022, (directory, name)


def test_compiled_files_are_there(ready: Stage) -> None:
    """The uid cannot write compiled files, so agentd's own are made by us: an import compiles nothing."""
    python = ready.bin(own()) / "python"
    code = "import agentd.errors as e, os; print(os.path.exists(e.__cached__), e.__cached__)"
    assert run_as(UID, python, "-c", code).startswith("True")


def test_an_unchanged_environment_is_found_at_once(ready: Stage) -> None:
    """The second start reuses the stage within 50 ms."""
    best = min(timed(lambda: Stage(ready.directory).stage(own())) for _ in range(3))
    assert best < 0.05


def timed(action: object) -> float:
    start = time.perf_counter()
    action()  # type: ignore[operator]
    return time.perf_counter() - start


def test_a_closed_venv_works_from_its_stage(closed_venv: Path, short_dir: Path) -> None:
    """Interpreter, module and private script of a closed environment run as a uid that cannot reach the original."""
    python = of(closed_venv)
    assert stage.closed(python, UID, UID) in (closed_venv.parent, Path("/root"))
    stages = Stage(short_dir / "stage")
    program = stages.translate(closed_venv / "bin/tool", python)
    word, module = run_as(UID, program).split()
    assert word == "tool"
    assert module.startswith(str(short_dir / "stage"))


def test_an_open_base_is_used_where_it_is(short_dir: Path) -> None:
    """A closed environment over the host's own Python: only the environment is staged."""
    system = Path("/usr/bin/python3")
    if stage.interpreter(system) is None:
        pytest.skip("this host has no Python in /usr")
    home = short_dir / "other"
    home.mkdir(mode=0o700)
    done = subprocess.run(
        [system, "-m", "venv", "--without-pip", home / "venv"], env={}, capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"this host's Python makes no environments: {done.stderr}")
    python = of(home / "venv")
    assert stage.closed(python, UID, UID) == home
    root = Stage(short_dir / "stage").stage(python)
    assert not (root / "base").exists()
    prefixes = run_as(UID, root / "venv/bin/python", "-c", "import sys, ssl; print(sys.prefix, sys.base_prefix)")
    assert prefixes == f"{root}/venv /usr"


def test_a_changed_environment_gets_a_new_stage_and_old_ones_go(closed_venv: Path, short_dir: Path) -> None:
    """A new package is a new stage; two are kept, and one on the PATH of a process is never removed."""
    python = of(closed_venv)
    directory = short_dir / "stage"
    first = Stage(directory).stage(python)
    env = {"PATH": f"{first}/venv/bin:/usr/bin:/bin"}
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, env=env) as child:
        wait_until(lambda: str(first) in Path(f"/proc/{child.pid}/environ").read_text())
        roots = [first]
        for number in range(3):
            (python.packages / f"new{number}.py").write_text("")
            roots.append(Stage(directory).stage(python))
        assert len(set(roots)) == 4
        assert [root.exists() for root in roots] == [True, False, True, True]
        child.communicate(b"")
    (python.packages / "last.py").write_text("")
    last = Stage(directory).stage(python)
    assert sorted(path for path in directory.iterdir() if path.is_dir()) == sorted([roots[-1], last])


def test_starts_at_the_same_time_stage_once(closed_venv: Path, short_dir: Path) -> None:
    """Several starters that find no stage wait for the one that makes it."""
    python = of(closed_venv)
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(Stage(short_dir / "stage").stage(python))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert sorted(p.name for p in (short_dir / "stage").iterdir()) == sorted({".lock", made[0].name})


def test_a_stage_that_was_cut_off_is_made_again(closed_venv: Path, short_dir: Path) -> None:
    """What a killed daemon left half-made is no stage and is in nobody's way."""
    python = of(closed_venv)
    root = Stage(short_dir / "stage").stage(python)
    root.rename(root.with_name(f".new-{root.name}"))
    assert Stage(short_dir / "stage").stage(python) == root
    assert not root.with_name(f".new-{root.name}").exists()


def test_another_users_environment_is_not_made_roots(closed_venv: Path, short_dir: Path) -> None:
    """An environment that somebody else may write to is never published as root's: an error says what to do."""
    os.chown(closed_venv, UID, UID)
    with pytest.raises(HostCannot, match=f"belongs to uid {UID}"):
        Stage(short_dir / "stage").stage(of(closed_venv))
    assert not (short_dir / "stage").exists()


def test_what_is_no_python_is_none() -> None:
    """Only an interpreter in a bin directory with its library counts."""
    assert stage.interpreter(Path("/bin/sh")) is None
    assert stage.interpreter(Path("/tmp/bin/python")) is None
    assert stage.interpreter(Path(sys.prefix) / "bin/python") == own()


def test_who_cannot_wait_gets_what_is_known_or_nothing(ready: Stage) -> None:
    """A look at an environment, or a copy, takes long: at once there is only what was looked at this very moment."""
    root = ready.stage(own())
    assert ready.at_once().stage(own()) == root
    later = Stage(ready.directory)
    with pytest.raises(stage.Slow):
        later.at_once().stage(own())
    assert later.stage(own()) == root
    assert later.at_once().stage(own()) == root
