"""Where agentctl looks for a daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentd.ctl import place
from agentd.daemon import config
from agentd.errors import ConfigError


@pytest.mark.parametrize("uid", [0, 1234])
def test_places_agree_with_the_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uid: int) -> None:
    """For root and others, with and without the XDG variables, both look at the same directories."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    for value in (str(tmp_path), None):
        for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            if value:
                monkeypatch.setenv(name, value)
            else:
                monkeypatch.delenv(name, raising=False)
        ours = {"config": place.default_config(), "state": place.default_state(), "runtime": place.default_runtime()}
        theirs = config.default_dirs()
        assert ours == {name: theirs[name] for name in ours}


def test_agentd_toml_moves_the_directories(tmp_path: Path) -> None:
    """The file wins over the default, an option over the file, as in the daemon."""
    file = tmp_path / "agentd.toml"
    file.write_text('runtime = "/r"\n[gateway]\nlisten = "127.0.0.1:0"\n')
    assert place.runtime(None, file) == Path("/r")
    assert place.runtime(Path("/o"), file) == Path("/o")
    assert place.state(None, file) == place.default_state()


def test_a_broken_agentd_toml_is_named(tmp_path: Path) -> None:
    """A file that the daemon would refuse is refused here, by name."""
    file = tmp_path / "agentd.toml"
    file.write_text("runtime = \n")
    with pytest.raises(ConfigError, match=r"agentd\.toml"):
        place.runtime(None, file)
    with pytest.raises(ConfigError, match="No such file"):
        place.state(None, tmp_path / "missing.toml")
