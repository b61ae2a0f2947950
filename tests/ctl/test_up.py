"""``agentctl up`` and ``down``: real processes, with the stand-in daemon as what is started."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from agentd.ctl import fleet as fleet_commands
from agentd.ctl.main import run
from tests.ctl import fleet
from tests.ctl.stand_in import serving

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> None:
    monkeypatch.setattr(fleet_commands, "PROGRAM", (sys.executable, "-m", "tests.ctl.stand_in"))
    monkeypatch.chdir(ROOT)
    for name in ("AGENTD_SOCKET", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def test_up_waits_until_all_have_settled_and_down_until_all_is_gone(
    short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up returns with every unit running; a second up says that it runs already; down leaves nothing."""
    runtime, state = short_dir / "r", short_dir / "s"
    options = ["--runtime", str(runtime), "--state", str(state), "--units", str(short_dir / "u")]
    assert run(["up", *options]) == 0
    first = capsys.readouterr()
    assert "3 of 3 units running" in first.out
    assert f"export AGENTD_SOCKET={runtime}/control.sock" in first.out
    assert (state / "log" / "agentd.log").read_text() == "agentd is here\n"
    assert run(["up", *options]) == 0
    assert capsys.readouterr().out.startswith("agentd runs already")
    socket = ["--socket", str(runtime / "control.sock")]
    assert run([*socket, "status", "--json"]) == 0
    keeper = json.loads(capsys.readouterr().out)["agentd"]["keeper_pid"]
    assert run([*socket, "down"]) == 0
    assert os.waitpid(keeper, 0)[1] == 0
    assert not (runtime / "control.sock").exists()
    assert capsys.readouterr().out == "agentd is down: all units stopped.\n"


def test_up_shows_why_agentd_ended_at_once(short_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The end of its log is printed at once, without waiting for a deadline."""
    config = short_dir / "agentd.toml"
    config.write_text(f'runtime = "{short_dir}/r"\nstate = "{short_dir}/s"\n')
    assert run(["up", "--config", str(config)]) == 1
    error = capsys.readouterr().err
    assert "agentctl: agentd ended at once (exit 1)." in error
    assert "  | agentd: " in error
    assert "gateway.lisen: unknown key." in error
    assert f"  All of it is in {short_dir}/s/log/agentd.log." in error


def test_the_log_of_agentd_itself_is_bounded(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too long is put aside before the next start; of earlier ones the last is kept."""
    monkeypatch.setattr(fleet_commands, "LOG_MOST", 4)
    log = short_dir / "s" / "log" / "agentd.log"
    log.parent.mkdir(parents=True)
    for kept, text in ((False, "four"), (True, "five5"), (True, "six666")):
        log.write_text(text)
        config = short_dir / "agentd.toml"
        config.write_text(f'runtime = "{short_dir}/r"\nstate = "{short_dir}/s"\n')
        assert run(["up", "--config", str(config)]) == 1
        assert (log.read_text().startswith(text), Path(f"{log}.1").exists()) == (not kept, kept)
    assert Path(f"{log}.1").read_text() == "six666"


def test_up_refuses_a_state_directory_that_cannot_be(short_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file in the way is named; nothing is started."""
    (short_dir / "s").write_text("")
    code = run(["up", "--runtime", str(short_dir / "r"), "--state", str(short_dir / "s")])
    assert code == 2
    assert "--state DIR" in capsys.readouterr().err
    assert not (short_dir / "r").exists()


def test_up_refuses_a_socket_that_agentd_would_not_make(short_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would start a daemon and then look for it elsewhere."""
    assert run(["--socket", str(short_dir / "x.sock"), "up"]) == 2
    assert "--runtime" in capsys.readouterr().err


def test_a_unit_with_a_reason_has_settled(short_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Held, parked and stopped units do not keep up waiting."""
    with serving(short_dir / "control.sock", {"GET /v1/status": (200, fleet.stormy())}) as daemon:
        assert run(["up", "--runtime", str(short_dir)]) == 0
        assert len(daemon.requests) == 2  # is it there with its keeper; have all settled
    assert "2 of 7 units running" in capsys.readouterr().out


def test_up_starts_a_keeper_for_a_daemon_that_lost_its_own(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It answers, but nobody could start or stop anything: agentd is started, and adopts it."""
    monkeypatch.setattr(fleet_commands, "PROGRAM", (sys.executable, "-c", "raise SystemExit(1)"))
    status = fleet.calm()
    status["agentd"]["keeper_pid"] = None
    with serving(short_dir / "control.sock", {"GET /v1/status": (200, status)}):
        assert run(["up", "--runtime", str(short_dir), "--state", str(short_dir / "s")]) == 1
    assert "agentd ended at once (exit 1)" in capsys.readouterr().err


def test_down_without_a_daemon_is_exit_code_5(short_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to stop."""
    assert run(["--socket", str(short_dir / "control.sock"), "down"]) == 5
    assert "no daemon answers" in capsys.readouterr().err
