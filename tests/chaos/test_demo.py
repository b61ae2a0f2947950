"""The demo, as ``make demo`` runs it where a local Ollama answers: every promise holds and nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chaos.scenario import MEASURES, VERBS, Row, load
from chaos.table import show

HERE = Path(__file__).parent.parent.parent
MODEL = "tiny:1b"


class _Ollama(BaseHTTPRequestHandler):
    """As much of Ollama as a pipeline asks for."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_GET(self) -> None:
        if self.path == "/api/tags":
            self._answer({"models": [{"name": MODEL, "model": MODEL}]})
        else:
            self._answer({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body["model"])  # type: ignore[attr-defined]
        message = {"role": "assistant", "content": "A small model says that this is fine."}
        usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        frame = {"id": "c", "object": "chat.completion", "created": 0, "model": body["model"]}
        self._answer({**frame, "choices": [choice], "usage": usage})

    def _answer(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def ollama() -> Iterator[ThreadingHTTPServer]:
    """A local Ollama on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Ollama)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_demo_holds_every_promise_and_leaves_nothing(ollama: ThreadingHTTPServer, tmp_path: Path) -> None:
    """Exit 0, every row ok, the text once more with Ollama, and its temporary directory is gone."""
    env = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{ollama.server_port}", "TMPDIR": "/tmp"}
    before = set(Path("/tmp").glob("agentd-*"))
    demo = subprocess.run(
        [sys.executable, "-m", "chaos.demo"], cwd=HERE, env=env, capture_output=True, text=True, timeout=240
    )
    assert demo.returncode == 0, demo.stdout[-6000:] + demo.stderr[-2000:]
    assert "FAIL" not in demo.stdout
    assert demo.stdout.count("\nok ") == 17
    assert f"model {MODEL}" in demo.stdout
    assert "A small model says" in demo.stdout
    assert set(ollama.asked) == {MODEL}  # type: ignore[attr-defined]
    base = next(line.split(" in ")[1].rstrip(":") for line in demo.stdout.splitlines() if "agents is up" in line)
    assert not Path(base).exists()
    assert base not in {str(path) for path in before}


def test_a_text_that_cannot_be_read_is_one_clear_line() -> None:
    """Exit 2, before anything is started."""
    argv = [sys.executable, "-m", "chaos.demo", "--input", "/nowhere/text.md"]
    demo = subprocess.run(argv, cwd=HERE, capture_output=True, text=True, timeout=60)
    assert demo.returncode == 2
    assert "/nowhere/text.md" in demo.stdout
    assert "DEMO_INPUT" in demo.stdout


@pytest.mark.parametrize("path", sorted((HERE / "chaos").glob("*.toml")), ids=lambda path: path.stem)
def test_every_scenario_is_inject_expect_and_measure(path: Path) -> None:
    """Only known verbs and measures, and a threshold for each measure."""
    scenario = load(path)
    steps = [*scenario["inject"], *scenario["expect"]]
    assert all(sum(name in VERBS for name in step) == 1 for step in steps)
    assert all(measure["what"] in MEASURES for measure in scenario["measure"])
    assert all(("at_most" in measure) != ("exactly" in measure) for measure in scenario["measure"])
    order = scenario.get("order", [])
    assert not order or (order.count("inject"), order.count("expect")) == (
        len(scenario["inject"]),
        len(scenario["expect"]),
    )


def test_the_table_reads_without_colour_and_shows_a_broken_promise() -> None:
    """ok and FAIL are words."""
    rows = [Row("a", "done", "≤ 5 ms", "3 ms", held=True), Row("a", "too late", "≤ 5 ms", "9 ms", held=False)]
    text = show(rows, colour=False)
    assert text.splitlines()[1].startswith("ok   a")
    assert text.splitlines()[2].startswith("FAIL")
    assert "\033[31m" in show(rows, colour=True)
