"""The daemon's /metrics page on a whole house: one page, for daemon, router and gateway together."""

from __future__ import annotations

from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from chaos.fleet import Fleet
from tests.fleet import fleet
from tests.waiting import wait_until

CALLER = """
import json
import os
import urllib.request

from agentd.sdk import Agent, Context

app = Agent()


@app.on("think")
def think(ctx, data: dict) -> int:
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions",
        data=json.dumps({"model": "dry-run", "messages": [{"role": "user", "content": "hi"}]}).encode(),
        headers={"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)["usage"]["total_tokens"]


app.run()
"""
Labels = tuple[tuple[str, str], ...]


def scrape(house: Fleet) -> dict[tuple[str, Labels], float]:
    """Each sample of the page by name and labels. Fails if the page does not parse or says something twice."""
    answer = httpx.get(f"http://{house.status()['agentd']['metrics']}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found: dict[tuple[str, Labels], float] = {}
    families = list(text_string_to_metric_families(answer.text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def total(page: dict[tuple[str, Labels], float], name: str, **labels: str) -> float:
    """The sum of a metric over all labels that are not named."""
    return sum(v for (n, has), v in page.items() if n == name and labels.items() <= dict(has).items())


def test_one_page_tells_of_the_daemon_the_router_and_the_gateway(short_dir: Path) -> None:
    """After a message and its model call the page has each owner's numbers, and leaves none out."""
    (short_dir / "caller.py").write_text(CALLER)
    (short_dir / "caller.py").chmod(0o644)
    unit = f'[agent]\nexec = ["python", "caller.py"]\nworkdir = "{short_dir}"\ntype = "notify"\n'
    with fleet(short_dir, {"caller": unit, "off": '[agent]\nexec = ["sleep", "1"]\n'}) as house:
        before = scrape(house)
        message = {"to": "caller", "kind": "think", "data": {}, "wait": 20}
        tokens = house.post("/v1/send", message)["result"]
        house.post("/v1/units/off/stop")
        wait_until(lambda: total(scrape(house), "agentd_tokens_total", unit="caller") > 0, 15, "the gateway's numbers")
        wait_until(lambda: total(scrape(house), "agentd_messages_done_total", unit="caller") == 1, 15, "the router's")
        page = scrape(house)
        assert total(page, "agentd_unit_state", unit="caller", state="running") == 1
        assert total(page, "agentd_unit_state", unit="off", state="inactive") == 1
        for name in ("bus", "router", "gateway", "caller"):
            assert total(page, "agentd_unit_state", unit=name) == 1
            assert total(page, "agentd_unit_memory_bytes", unit=name) > 1 << 20, name
        assert total(page, "agentd_tokens_total", unit="caller", kind="charged") == tokens
        assert total(page, "agentd_calls_total", unit="caller") == 1
        assert total(page, "agentd_call_seconds_count", unit="caller") == 1
        assert total(page, "agentd_budget_used_tokens", unit="caller") == tokens
        assert total(page, "agentd_messages_delivered_total", unit="caller") == 1
        assert total(page, "agentd_inbox_pending", unit="caller") == 0
        assert total(page, "agentd_metrics_refused_total") == 0
        assert {name for name, _ in page} >= {name for name, _ in before}
        shrunk = [key for key in before if key[0].endswith("_total") and page.get(key, 0.0) < before[key]]
        assert not [key for key in shrunk if dict(key[1]).get("unit") != "off"]
