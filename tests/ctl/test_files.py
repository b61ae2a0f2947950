"""Unit files from the command line: check, deploy, explain; with a daemon and without."""

from __future__ import annotations

import json
from pathlib import Path

from tests.ctl.conftest import Agentctl
from tests.ctl.stand_in import StandIn

GOOD = '[agent]\nexec = ["true"]\n'
BAD = '[agent]\nexec = ["true"]\n\n[restart]\nburts = 3\n'


def test_check_without_a_daemon_still_checks(agentctl: Agentctl, tmp_path: Path) -> None:
    """Unknown keys, programs that do not exist and cycles are found offline; it says what was not checked."""
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "bad.toml").write_text(BAD)
    (tmp_path / "lost.toml").write_text('[agent]\nexec = ["no-such-program-here"]\n')
    (tmp_path / "lonely.toml").write_text('[agent]\nexec = ["true"]\nafter = ["nobody"]\n')
    done = agentctl("check", str(tmp_path))
    assert done.returncode == 2
    assert "bad.toml:5: [restart] burts:" in done.stdout
    assert "Did you mean burst?" in done.stdout
    assert "lost.toml:2: [agent] exec: there is no program 'no-such-program-here'" in done.stdout
    assert "lonely.toml:3: [agent] after: 'nobody' is no unit" in done.stdout
    assert "good.toml" not in done.stdout
    assert "No daemon answers" in done.stdout
    findings = json.loads(agentctl("check", str(tmp_path), "--json").stdout)["findings"]
    assert [f["severity"] for f in findings] == ["error"] * 3


def test_check_of_good_files_is_exit_code_0(agentctl: Agentctl, tmp_path: Path) -> None:
    """Nothing wrong, nothing but the verdict."""
    (tmp_path / "good.toml").write_text(GOOD)
    done = agentctl("check", str(tmp_path / "good.toml"))
    assert done.returncode == 0
    assert done.stdout.startswith("1 file: all well\n")


def test_check_asks_the_daemon_about_the_host(daemon: StandIn, agentctl: Agentctl, tmp_path: Path) -> None:
    """With a daemon its findings are printed, errors first, with their hints."""
    file = tmp_path / "good.toml"
    file.write_text(GOOD)
    where = {"file": str(file), "line": None, "key": "[limits] memory"}
    findings = [
        {**where, "message": "not enforced.", "hint": "Run as root.", "severity": "warning"},
        {**where, "line": 2, "message": "cannot be had.", "hint": None, "severity": "error"},
    ]
    daemon.answers["POST /v1/check"] = (200, {"findings": findings, "units": ["good"]})
    done = agentctl("check", str(file))
    assert done.returncode == 2
    assert daemon.last.body == {"files": [{"path": str(file), "text": GOOD}]}
    lines = done.stdout.splitlines()
    assert lines[0].startswith("error  ")
    assert lines[0].endswith("good.toml:2: [limits] memory: cannot be had.")
    assert lines[2].strip() == "Run as root."
    assert lines[3] == "1 file, 1 error, 1 warning"


def test_deploy_tells_what_changed(daemon: StandIn, agentctl: Agentctl, tmp_path: Path) -> None:
    """Findings, then what was started, restarted and left alone."""
    (tmp_path / "good.toml").write_text(GOOD)
    answer = {"findings": [], "started": ["good"], "restarted": ["a", "b"], "unchanged": []}
    daemon.answers["POST /v1/deploy"] = (200, answer)
    done = agentctl("deploy", str(tmp_path), "--reason", "monday")
    assert done.returncode == 0
    assert done.stdout == "started    good\nrestarted  a, b\n"
    assert daemon.last.reason == "monday"


def test_a_directory_without_unit_files_is_said_so(agentctl: Agentctl, tmp_path: Path) -> None:
    """Nothing to deploy is a mistake, not a success; text that is not UTF-8 is one too."""
    assert "holds no unit file" in agentctl("deploy", str(tmp_path)).stderr
    (tmp_path / "latin.toml").write_bytes(b"# \xe4")
    done = agentctl("check", str(tmp_path / "latin.toml"))
    assert done.returncode == 2
    assert "byte 2 is not UTF-8" in done.stderr


def test_explain_asks_for_a_name_and_reads_a_file(daemon: StandIn, agentctl: Agentctl, tmp_path: Path) -> None:
    """A unit's settings come from the daemon; a file's are read here, and need no daemon."""
    setting = {
        "section": "agent",
        "key": "type",
        "value": "simple",
        "default": "simple",
        "source": "default",
        "help": "x",
    }
    answer = {"name": "writer", "file": None, "settings": [setting], "argv": ["true"], "level": "cgroup"}
    daemon.answers["GET /v1/units/writer"] = (200, answer)
    assert 'type = "simple"  (default)' in agentctl("explain", "writer").stdout
    file = tmp_path / "good.toml"
    file.write_text(GOOD)
    done = agentctl("explain", str(file))
    assert done.returncode == 0
    assert 'exec = ["true"]  (from the file' in done.stdout
    assert len(daemon.requests) == 1


def test_explain_alone_is_the_reference(agentctl: Agentctl) -> None:
    """Every setting that there is, without a unit and without a daemon."""
    done = agentctl("explain")
    assert done.returncode == 0
    assert "[budget]" in done.stdout
    assert "tokens" in json.loads(agentctl("explain", "--json").stdout)["reference"]


def test_explain_of_a_wrong_file_says_where(agentctl: Agentctl, tmp_path: Path) -> None:
    """Its first problem, with file and line, and exit code 2."""
    (tmp_path / "bad.toml").write_text(BAD)
    done = agentctl("explain", str(tmp_path / "bad.toml"))
    assert done.returncode == 2
    assert "bad.toml:5: [restart] burts:" in done.stderr


# --- templates and drop-ins -------------------------------------------------------------------------------------------


def test_a_directory_brings_its_dropins(daemon: StandIn, agentctl: Agentctl, tmp_path: Path) -> None:
    """`deploy DIR` sends unit files and the drop-ins below it; what was removed, and a template of which nothing runs,
    are told."""
    (tmp_path / "coder@.toml").write_text(GOOD)
    (tmp_path / "coder@.toml.d").mkdir()
    (tmp_path / "coder@.toml.d" / "big.toml").write_text("[limits]\nmemory = '1G'\n")
    answer = {"findings": [], "started": [], "restarted": [], "unchanged": [], "removed": ["coder@3"]}
    daemon.answers["POST /v1/deploy"] = (200, {**answer, "templates": ["coder@"]})
    done = agentctl("deploy", str(tmp_path))
    sent = [file["path"] for file in daemon.last.body["files"]]
    assert sent == [str(tmp_path / "coder@.toml"), str(tmp_path / "coder@.toml.d" / "big.toml")]
    assert done.stdout.splitlines() == [
        "removed    coder@3",
        "coder@: installed; no instance yet. Start one: agentctl start coder@NAME",
    ]


def test_check_without_a_daemon_knows_templates_and_dropins(agentctl: Agentctl, tmp_path: Path) -> None:
    """Errors stand in the drop-in's own file; a template is checked though nothing of it runs."""
    (tmp_path / "coder@.toml").write_text(GOOD + 'description = "%x"\n')
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "good.toml.d").mkdir()
    (tmp_path / "good.toml.d" / "bad.toml").write_text("[limits]\nmemory = 'lots'\n")
    done = agentctl("check", str(tmp_path))
    assert done.returncode == 2
    assert "coder@.toml:3: [agent] description: %x means nothing" in done.stdout
    assert "good.toml.d/bad.toml:2: [limits] memory: 'lots'" in done.stdout
    assert "3 files, 2 errors" in done.stdout


def test_explain_of_a_file_counts_its_dropins(agentctl: Agentctl, tmp_path: Path) -> None:
    """Each setting names the file that says it."""
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "good.toml.d").mkdir()
    (tmp_path / "good.toml.d" / "big.toml").write_text("[limits]\nmemory = '1G'\n")
    shown = agentctl("explain", str(tmp_path / "good.toml")).stdout
    assert f"drop-in    {tmp_path}/good.toml.d/big.toml\n" in shown
    assert 'memory = "1G"  (from big.toml; default none)' in shown
    assert 'exec = ["true"]  (from the file; default none)' in shown


def test_cat_names_each_file(daemon: StandIn, agentctl: Agentctl) -> None:
    """A line with the path, then the text as it is."""
    files = [{"path": "/u/a.toml", "text": GOOD}, {"path": "/u/a.toml.d/b.toml", "text": "# mine"}]
    daemon.answers["GET /v1/units/a/files"] = (200, {"name": "a", "file": None, "files": files})
    assert agentctl("cat", "a").stdout == f"# /u/a.toml\n{GOOD}\n# /u/a.toml.d/b.toml\n# mine\n"
    daemon.answers["GET /v1/units/a/files"] = (200, {"name": "a", "file": None, "files": []})
    assert agentctl("cat", "a").stdout == "# transient: no file\n"


def test_a_template_stands_for_all_of_its_instances(daemon: StandIn, agentctl: Agentctl) -> None:
    """start tells what became of each; status fails with 3 when one is down; remove says what is gone."""
    units = [{"name": f"coder@{n}", "state": state, "pid": None} for n, state in ((1, "running"), (2, "failed"))]
    daemon.answers["POST /v1/units/coder@/start"] = (200, {"template": "coder@", "units": units})
    done = agentctl("start", "coder@")
    assert (done.returncode, done.stdout) == (1, "coder@1: running\ncoder@2: failed\n")
    files = ["/u/coder@.toml", "/u/coder@.toml.d/a.toml"]
    answer = {"removed": "coder@", "units": ["coder@1", "coder@2"], "files": files}
    daemon.answers["DELETE /v1/units/coder@"] = (200, answer)
    removed = ["coder@1: removed", "coder@2: removed", "coder@: removed", "  with /u/coder@.toml.d/a.toml"]
    assert agentctl("remove", "coder@").stdout.splitlines() == removed
