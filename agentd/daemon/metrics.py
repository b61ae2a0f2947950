"""Prometheus text from what ``status`` says and from what router and gateway count themselves.

Everything is made at the scrape from values that are there anyway; nothing is counted here. The other owners' numbers
come as their ``metrics`` facts (wire/FACTS.md) and are merged by name. What does not fit is left out and counted, so
that one odd number never costs the whole page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

Json = dict[str, Any]

CONTENT_TYPE = CONTENT_TYPE_LATEST
STATES = ("inactive", "starting", "running", "stopping", "backoff", "parked", "held", "failed")
ACTIVITIES = ("idle", "working", "thinking", "hung", "frozen")
NAME = re.compile(r"agentd_[a-z0-9]+(_[a-z0-9]+)*")
LABEL = re.compile(r"[a-z][a-z0-9_]*")

UNIT_NUMBERS: tuple[tuple[str, type[Metric], str, str], ...] = (
    ("agentd_unit_restarts_total", CounterMetricFamily, "restarts", "Restarts since the operator's last start."),
    ("agentd_unit_failures", GaugeMetricFamily, "failures", "Failures within the restart window."),
    ("agentd_unit_memory_bytes", GaugeMetricFamily, "memory", "Memory of the whole process tree."),
    ("agentd_unit_cpu_seconds_total", CounterMetricFamily, "cpu_seconds", "CPU time of the present invocation."),
    ("agentd_unit_processes", GaugeMetricFamily, "processes", "Processes of the unit."),
    ("agentd_unit_start_time_seconds", GaugeMetricFamily, "started", "When the present invocation began, unix time."),
    (
        "agentd_log_dropped_bytes_total",
        CounterMetricFamily,
        "log_dropped",
        "Output that found no room in the unit's log.",
    ),
    ("agentd_unit_children", GaugeMetricFamily, "children", "Descendants that it spawned and that are there."),
    ("agentd_heartbeat_age_seconds", GaugeMetricFamily, "beat_age", "Time since the last heartbeat."),
)
"""Name, kind, key of UnitStatus and help of the plain numbers."""
SCHEDULE_NUMBERS: tuple[tuple[str, type[Metric], str, str], ...] = (
    ("agentd_schedule_next_time_seconds", GaugeMetricFamily, "next", "When the next scheduled run begins, unix time."),
    ("agentd_schedule_runs_total", CounterMetricFamily, "runs", "Runs that were started by the schedule."),
    ("agentd_schedule_missed_total", CounterMetricFamily, "missed", "Runs whose time went by unserved."),
    (
        "agentd_schedule_skipped_total",
        CounterMetricFamily,
        "skipped",
        "Due runs that found the one before not over.",
    ),
    ("agentd_schedule_skipped_in_a_row", GaugeMetricFamily, "skipped_in_a_row", "Of these, since the last start."),
)
"""The same of ``schedule`` in UnitStatus."""


def render(status: Json, owners: Mapping[str, Json | None]) -> bytes:
    """The page, from the whole answer of ``Control.status()`` and the ``metrics`` fact of each owner by its name."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(status, owners))
    return generate_latest(registry)


class _Page(Collector):
    """One scrape."""

    def __init__(self, status: Json, owners: Mapping[str, Json | None]) -> None:
        self._status, self._owners = status, owners

    def collect(self) -> Iterator[Metric]:
        """All families, each name once: the daemon's own first."""
        own = [*_daemon(self._status.get("agentd") or {}), *_units(self._status.get("units") or [])]
        taken = {name for family in own for name in _names(family)}
        others, refused = _merge(self._owners, taken)
        yield from own
        yield from others
        left_out = CounterMetricFamily(
            "agentd_metrics_refused_total", "Numbers of this scrape that were left out.", labels=["owner"]
        )
        for owner, count in sorted(refused.items()):
            left_out.add_metric([owner], count)
        yield left_out


def _daemon(agentd: Json) -> Iterator[Metric]:
    yield InfoMetricFamily("agentd_build", "The running agentd.", value={"version": str(agentd.get("version", ""))})
    started = agentd.get("started")
    if _is_number(started):
        yield GaugeMetricFamily("agentd_daemon_start_time_seconds", "When the daemon began, unix time.", value=started)
    broken = len(agentd.get("broken") or [])
    yield GaugeMetricFamily("agentd_unit_files_broken", "Unit files that could not be taken.", value=broken)
    yield GaugeMetricFamily(
        "agentd_daemon_warnings", "Lines of warning in status.", value=len(agentd.get("warnings") or [])
    )
    asked = CounterMetricFamily("agentd_keeper_requests_total", "Requests to the keeper.", labels=["do"])
    for do, count in sorted((agentd.get("keeper_requests") or {}).items()):
        asked.add_metric([str(do)], count)
    yield asked
    journal = agentd.get("journal")
    if isinstance(journal, dict):
        dropped, healthy = journal.get("dropped", 0), bool(journal.get("healthy"))
        yield CounterMetricFamily("agentd_journal_dropped_total", "Records that found no room.", value=dropped)
        yield GaugeMetricFamily("agentd_journal_healthy", "1 while the journal can be written.", value=healthy)


def _units(units: Iterable[Json]) -> Iterator[Metric]:
    units = list(units)
    state = GaugeMetricFamily("agentd_unit_state", "1 for the state that the unit is in.", labels=["unit", "state"])
    activity = GaugeMetricFamily("agentd_unit_activity", "1 for what a running unit does.", labels=["unit", "activity"])
    ready = GaugeMetricFamily("agentd_unit_ready", "1 while the unit is ready to receive.", labels=["unit"])
    degraded = GaugeMetricFamily("agentd_unit_degraded", "Units that it needs and that are gone.", labels=["unit"])
    alarmed = GaugeMetricFamily("agentd_unit_alarmed", "1 while it hangs and on_hang is alarm.", labels=["unit"])
    for unit in units:
        name = str(unit["name"])
        if not unit.get("system"):
            degraded.add_metric([name], len(unit.get("degraded") or ()))
        for word in STATES:
            state.add_metric([name, word], unit.get("state") == word)
        for word in ACTIVITIES if unit.get("activity") else ():
            activity.add_metric([name, word], unit.get("activity") == word)
        ready.add_metric([name], bool(unit.get("ready", unit.get("state") == "running")))
        alarmed.add_metric([name], bool(unit.get("alarm")))
    yield from (state, activity, ready, degraded, alarmed)
    for metric, kind, key, text in UNIT_NUMBERS:
        family = kind(metric, text, labels=["unit"])  # type: ignore[call-arg]
        for unit in units:
            if _is_number(unit.get(key)):
                family.add_metric([str(unit["name"])], unit[key])  # type: ignore[attr-defined]
        yield family
    scheduled = [unit for unit in units if unit.get("schedule")]
    for metric, kind, key, text in SCHEDULE_NUMBERS if scheduled else ():
        family = kind(metric, text, labels=["unit"])  # type: ignore[call-arg]
        for unit in scheduled:
            if _is_number(unit["schedule"].get(key)):
                family.add_metric([str(unit["name"])], unit["schedule"][key])  # type: ignore[attr-defined]
        yield family


# -- what the other owners count ------------------------------------------------------------------------------


def _merge(owners: Mapping[str, Json | None], taken: set[str]) -> tuple[list[Metric], dict[str, int]]:
    """One family per name over all owners, and how many numbers of each owner were left out.

    Left out is what has the name of another family, another type or other labels than the first one that came with that
    name, the same labels twice, or what is not of the form in FACTS.md.
    """
    families: dict[str, _Family] = {}
    refused: dict[str, int] = {}
    for owner, metrics in sorted(owners.items()):
        refused[owner] = 0
        for name, told in (metrics or {}).items():
            family = families.get(name) or _family(name, told, taken)
            if family is None or not family.fits(told):
                refused[owner] += 1
                continue
            if name not in families:
                families[name] = family
                taken |= _names(family.metric)
            refused[owner] += sum(not family.add(sample) for sample in _samples(told))
    return [family.metric for family in families.values()], refused


KINDS: dict[str, type[Metric]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class _Family:
    """A family that is being filled."""

    def __init__(self, metric: Metric, kind: str, labels: list[str]) -> None:
        self.metric, self._kind, self._labels = metric, kind, labels
        self._seen: set[tuple[str, ...]] = set()

    def fits(self, told: Any) -> bool:
        return isinstance(told, dict) and told.get("type") == self._kind and told.get("labels", []) == self._labels

    def add(self, sample: Any) -> bool:
        """Take one ``[label values, value]``; false if it is not of that form or was there already."""
        if not (isinstance(sample, list) and len(sample) == 2 and isinstance(sample[0], list)):
            return False
        labels = tuple(_text(label) for label in sample[0])
        if len(labels) != len(self._labels) or labels in self._seen:
            return False
        if not (self._add_histogram if self._kind == "histogram" else self._add_number)(labels, sample[1]):
            return False
        self._seen.add(labels)
        return True

    def _add_number(self, labels: tuple[str, ...], value: Any) -> bool:
        if not _is_number(value) or (self._kind == "counter" and value < 0):
            return False
        self.metric.add_metric(labels, value)  # type: ignore[attr-defined]
        return True

    def _add_histogram(self, labels: tuple[str, ...], value: Any) -> bool:
        buckets = _buckets(value)
        if buckets is None:
            return False
        self.metric.add_metric(labels, buckets, float(value["sum"]))  # type: ignore[attr-defined]
        return True


def _family(name: Any, told: Any, taken: set[str]) -> _Family | None:
    if not (isinstance(name, str) and NAME.fullmatch(name) and isinstance(told, dict)):
        return None
    kind, labels = told.get("type"), told.get("labels", [])
    if kind not in KINDS or (kind == "counter") != name.endswith("_total"):
        return None
    if not (isinstance(labels, list) and all(isinstance(x, str) and LABEL.fullmatch(x) for x in labels)):
        return None
    if "le" in labels or len(set(labels)) != len(labels):
        return None
    metric = KINDS[kind](name, _text(told.get("help", "")), labels=labels)  # type: ignore[call-arg]
    return None if _names(metric) & taken else _Family(metric, kind, labels)


def _names(metric: Metric) -> set[str]:
    """All sample names that a family may write, and its own."""
    suffixes = {
        "counter": ("", "_total", "_created"),
        "histogram": ("", "_bucket", "_sum", "_count", "_created"),
        "info": ("", "_info"),
    }
    return {metric.name + suffix for suffix in suffixes.get(metric.type, ("",))}


def _samples(told: Json) -> list[Any]:
    samples = told.get("samples", [])
    return samples if isinstance(samples, list) else [None]


def _buckets(value: Any) -> list[tuple[str, float]] | None:
    """Bounds and cumulative counts in order, ending with +Inf; None if it is not a histogram."""
    if not isinstance(value, dict) or not _is_number(value.get("sum")) or not _is_number(value.get("count")):
        return None
    told = value.get("buckets")
    if not isinstance(told, dict) or not all(_is_number(count) for count in told.values()):
        return None
    try:
        bounds = {float(bound): count for bound, count in told.items()}
    except ValueError:
        return None
    if any(math.isnan(bound) for bound in bounds):
        return None
    bounds[math.inf] = value["count"]
    ordered = sorted(bounds.items())
    counts = [count for _, count in ordered]
    if counts != sorted(counts):
        return None
    return [("+Inf" if math.isinf(bound) else repr(bound), count) for bound, count in ordered]


def _text(value: object) -> str:
    """A page is UTF-8, which has no lone surrogates; JSON can carry them."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
