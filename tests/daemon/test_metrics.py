"""The metrics page: read back by Prometheus' own parser."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agentd.daemon import metrics

Json = dict[str, Any]

TEXT = st.text(st.sampled_from('a "\\{}=,#\n\r\t\0\ud800é'), max_size=4)
WRITER: Json = {
    "name": "writer",
    "state": "running",
    "activity": "thinking",
    "restarts": 3,
    "failures": 1,
    "memory": 1024,
    "cpu_seconds": 1.5,
    "processes": 2,
    "started": 1000.5,
    "beat_age": 0.25,
}
READER: Json = {
    "name": "reader",
    "state": "held",
    "activity": None,
    "restarts": 0,
    "failures": 0,
    "memory": None,
    "cpu_seconds": None,
    "processes": 0,
    "started": None,
}
STATUS: Json = {
    "agentd": {
        "version": "1.2.3",
        "started": 900.0,
        "warnings": ["one"],
        "broken": [],
        "journal": {"dropped": 7, "healthy": True},
    },
    "units": [WRITER, READER],
}


def samples(page: bytes) -> dict[str, float]:
    """``name{label=value,…}`` → value, as Prometheus reads it; a family or sample twice is an error."""
    found: dict[str, float] = {}
    families = set()
    for family in text_string_to_metric_families(page.decode()):
        assert family.name not in families
        families.add(family.name)
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}"
            assert key not in found
            found[key] = sample.value
    return found


def told(kind: str, values: list[Any], labels: tuple[str, ...] = ("unit",)) -> Json:
    return {"type": kind, "help": "Some help.", "labels": list(labels), "samples": values}


def test_what_status_says() -> None:
    """Each unit's state is one of eight, and its numbers are there as far as they are known."""
    page = samples(metrics.render(STATUS, {}))
    assert page["agentd_build_info{version=1.2.3}"] == 1
    assert page["agentd_journal_dropped_total{}"] == 7
    assert page["agentd_journal_healthy{}"] == 1
    assert page["agentd_daemon_warnings{}"] == 1
    states = {
        key: value for key, value in page.items() if key.startswith("agentd_unit_state{") and "unit=writer" in key
    }
    assert len(states) == 8
    assert [key for key, value in states.items() if value] == ["agentd_unit_state{state=running,unit=writer}"]
    assert page["agentd_unit_state{state=held,unit=reader}"] == 1
    assert page["agentd_unit_activity{activity=thinking,unit=writer}"] == 1
    assert (page["agentd_unit_ready{unit=writer}"], page["agentd_unit_ready{unit=reader}"]) == (1, 0)
    assert page["agentd_unit_restarts_total{unit=writer}"] == 3
    assert page["agentd_unit_memory_bytes{unit=writer}"] == 1024
    assert page["agentd_unit_cpu_seconds_total{unit=writer}"] == 1.5
    assert page["agentd_heartbeat_age_seconds{unit=writer}"] == 0.25
    assert "agentd_unit_memory_bytes{unit=reader}" not in page


def test_owners_are_merged_by_name() -> None:
    """The same name from two owners is one family with the samples of both; histograms come whole."""
    histogram = {"sum": 2.5, "count": 4, "buckets": {"0.1": 1, "1": 3}}
    page = samples(
        metrics.render(
            STATUS,
            {
                "router": {"agentd_events_total": told("counter", [[["a"], 1]])},
                "gateway": {
                    "agentd_events_total": told("counter", [[["b"], 2]]),
                    "agentd_calls_open": told("gauge", [[[], 5]], ()),
                    "agentd_call_seconds": told("histogram", [[["a"], histogram]]),
                },
            },
        )
    )
    assert (page["agentd_events_total{unit=a}"], page["agentd_events_total{unit=b}"]) == (1, 2)
    assert page["agentd_calls_open{}"] == 5
    assert page["agentd_call_seconds_bucket{le=1.0,unit=a}"] == 3
    assert page["agentd_call_seconds_bucket{le=+Inf,unit=a}"] == 4
    assert page["agentd_call_seconds_sum{unit=a}"] == 2.5
    assert page["agentd_metrics_refused_total{owner=gateway}"] == 0


@pytest.mark.parametrize(
    "odd",
    [
        {"agentd_unit_state": told("gauge", [[["a"], 1]])},
        {"agentd_unit_restarts_total": told("counter", [[["a"], 1]])},
        {"agentd_good_total": told("gauge", [[["a"], 1]])},
        {"agentd_good_total": told("counter", [[["a"], 1]], ("other",))},
        {"agentd_good_total": told("counter", [[["first"], 1]])},
        {"agentd_other_total": told("counter", [[["a"], -1]])},
        {"agentd_other_total": told("counter", [[["a"], "many"]])},
        {"agentd_other_total": told("counter", [[["a", "b"], 1]])},
        {"agentd_other_total": told("counter", [None])},
        {"agentd_other": told("counter", [[["a"], 1]])},
        {"other_total": told("counter", [[["a"], 1]])},
        {'agentd_x"\n_total': told("counter", [[["a"], 1]])},
        {"agentd_other": told("summary", [[["a"], 1]])},
        {"agentd_other": told("gauge", [[["a"], 1]], ("un it",))},
        {"agentd_other": told("histogram", [[["a"], {"sum": 1, "count": 2, "buckets": {"1": 3}}]])},
        {"agentd_other": told("histogram", [[["a"], {"sum": 1, "count": 2, "buckets": {"x": 1}}]])},
        {"agentd_other": told("histogram", [[["a"], 5]])},
        {"agentd_other": told("histogram", [[["a"], {"sum": 1, "count": 2, "buckets": {}}]], ("le",))},
        {"agentd_good": told("histogram", [[["a"], {"sum": 1, "count": 2, "buckets": {}}]])},
        {"agentd_other": None},
    ],
)
def test_what_does_not_fit_is_left_out_and_counted(odd: Json) -> None:
    """One odd number costs itself and nothing else; the page says that it is missing."""
    good = {"agentd_good_total": told("counter", [[["first"], 9]])}
    page = samples(metrics.render(STATUS, {"gateway": good, "router": odd}))
    assert page["agentd_good_total{unit=first}"] == 9
    assert page["agentd_metrics_refused_total{owner=router}"] == 1
    assert page["agentd_unit_restarts_total{unit=writer}"] == 3
    assert not any("other" in key for key in page)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["agentd_a_total", "agentd_a", "agentd_b", "agentd_b_count", "agentd_a_total_total"]),
        st.fixed_dictionaries(
            {
                "type": st.sampled_from(["counter", "gauge", "histogram"]),
                "help": TEXT,
                "labels": st.lists(st.sampled_from(["unit", "le", "model"]), max_size=2),
                "samples": st.lists(
                    st.tuples(
                        st.lists(TEXT, max_size=2),
                        st.integers()
                        | st.floats()
                        | st.fixed_dictionaries({"sum": st.floats(), "count": st.integers()}),
                    ).map(list),
                    max_size=3,
                ),
            }
        ),
    )
)
def test_whatever_an_owner_says_the_page_can_be_read(facts: Json) -> None:
    """For any fact of the right outline the parser reads the page and finds no name twice."""
    page = metrics.render(STATUS, {"router": facts}).decode()
    assert len({family.name for family in text_string_to_metric_families(page)}) > 5


def test_an_owner_that_is_away_is_no_error() -> None:
    """Without router and gateway the daemon's own numbers are there."""
    page = samples(metrics.render({"agentd": {}, "units": []}, {"router": None, "gateway": {}}))
    assert page["agentd_build_info{version=}"] == 1
