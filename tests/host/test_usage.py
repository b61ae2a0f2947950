"""What a unit uses, read from the files of its cgroups."""

from __future__ import annotations

from pathlib import Path

from agentd.host.capability import Capabilities
from agentd.host.usage import Usage, read


def cgroup(directory: Path, **files: str) -> None:
    (directory / "a").mkdir(parents=True)
    for name, text in files.items():
        (directory / "a" / name.replace("__", ".")).write_text(text)


def test_v1_and_v2_are_read_alike(tmp_path: Path) -> None:
    """Memory without idle file cache, CPU seconds, processes and kills; a name that only begins alike is another's."""
    cpu = {"cpu__stat": "usage_usec 2500000\nuser_usec 1\n", "cgroup__procs": "7\n12345\n"}
    stat = "xinactive_file 5\ninactive_file 100\ntotal_inactive_file 300\n"
    v1 = {"memory__usage_in_bytes": "1000\n", "memory__oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"}
    cgroup(tmp_path / "memory", memory__stat=stat, **v1)
    cgroup(tmp_path / "kill", **cpu)
    cgroup(tmp_path / "v2", memory__stat=stat, memory__current="1000\n", memory__events="oom 3\noom_kill 2\n", **cpu)
    hybrid = {"memory": tmp_path / "memory", "kill": tmp_path / "kill"}
    unified = {"memory": tmp_path / "v2", "kill": tmp_path / "v2"}
    assert read("a", None, "cgroup", Capabilities(0, True, "v1", hybrid)) == Usage(700, 2.5, 2, 2)
    assert read("a", None, "cgroup", Capabilities(0, True, "v2", unified)) == Usage(900, 2.5, 2, 2)


def test_a_unit_that_is_gone_uses_nothing(tmp_path: Path) -> None:
    """Its cgroup went between two looks: no error, no numbers."""
    parents = {"memory": tmp_path, "kill": tmp_path}
    assert read("a", None, "cgroup", Capabilities(0, True, "v2", parents)) == Usage()
