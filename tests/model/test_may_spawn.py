"""Who may spawn what: no history of spawns, ends and restarts gets more than a unit file grants; planted bugs show."""

from __future__ import annotations

import itertools
import json
import random
import sys
from dataclasses import astuple
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agentd.errors import AgentdError, BadInput, Denied, OverBudget
from agentd.model import offspring, reading
from agentd.model.grant import Grant
from agentd.model.ledger import period_of
from agentd.model.quantity import WINDOWS
from agentd.model.unit import Agent, Unit

Json = dict[str, Any]
SOURCE = Path(offspring.__file__)
CHILD = {"agent": {"exec": ["x"]}}


def root(text: str = "number = 3", more: str = "", name: str = "boss") -> Unit:
    """A unit that may spawn."""
    return reading.parse(f'[agent]\nexec = ["x"]\nmay_spawn = {{ {text} }}\n{more}', name)


def child(unit: Unit, **tables: Json) -> Unit:
    """Its child c, alone."""
    spec = {"agent": {"exec": ["x"], **tables.pop("agent", {})}, **tables}
    return offspring.admit(unit.name, "c", spec, {unit.name: unit}, {}, "cgroup", 0.0)


# --- a whole history --------------------------------------------------------------------------------------------------


class World:
    """A family at work: a gateway that lets every unit spend what its own budget allows, and naive sums beside it."""

    def __init__(self, module: ModuleType, luck: random.Random) -> None:
        self.module, self.luck, self.now = module, luck, 1_000_000.0
        grant: Json = {"number": luck.randint(1, 6), "depth": luck.randint(1, 3)}
        for key, choices in (("memory", (1000, 4096)), ("cpu", (1, 0.02)), ("pids", (7, 64))):
            if luck.random() < 0.5:
                grant[key] = luck.choice(choices)
        if luck.random() < 0.7:
            grant["tokens"] = f"{luck.choice((10, 1000))}/{luck.choice(WINDOWS)}"
        unit = {"agent": {"exec": ["x"], "may_spawn": grant}, "budget": {"tokens": f"500/{luck.choice(WINDOWS)}"}}
        self.fleet: dict[str, Unit] = {"boss": reading.from_dict("boss", unit)}
        self.past: Any = {}
        self.used: dict[tuple[str, str, int], int] = {}
        """What a name spent, by window and period: the gateway's books."""
        self.spent: list[tuple[float, str, int]] = []

    def act(self) -> None:
        what = self.luck.choice(("spawn", "spawn", "spawn", "spend", "spend", "end", "crash", "restart", "time"))
        getattr(self, what)()
        self.check()

    def spawn(self) -> None:
        parent = self.luck.choice(list(self.fleet))
        try:
            unit = self.module.admit(
                parent, self.luck.choice("abcdefgh"), self.spec(), self.fleet, self.past, "cgroup", self.now
            )
        except AgentdError:
            return
        if unit.name not in self.fleet:  # the daemon's own question, before
            self.fleet[unit.name] = unit

    def spec(self) -> Json:
        luck = self.luck
        spec: Json = {"agent": {"exec": ["x"]}, "limits": {}}
        for key, choices in (("memory", (1, 500, 4096)), ("cpu", (0.001, 0.002, 0.3)), ("pids", (1, 6, 64))):
            if luck.random() < 0.3:
                spec["limits"][key] = luck.choice(choices)
        if luck.random() < 0.4:
            spec["budget"] = {"tokens": f"{luck.choice((0, 3, 100, 1000))}/{luck.choice(WINDOWS)}"}
        if luck.random() < 0.4:
            spec["agent"]["may_spawn"] = {"number": luck.randint(1, 6), "depth": luck.randint(1, 2)}
        return spec

    def children(self) -> list[str]:
        return [name for name in self.fleet if name != "boss"]

    def spend(self) -> None:
        """A child spends all that the gateway lets it."""
        if self.children():
            name = self.luck.choice(self.children())
            allowed = self.fleet[name].budget.tokens
            here = (name, allowed.window, period_of(allowed.window, self.now))
            more = max(0, allowed.amount - self.used.get(here, 0))
            more = self.luck.choice((more, more // 2))
            self.used[here] = self.used.get(here, 0) + more
            self.spent.append((self.now, name, more))

    def end(self, name: str = "") -> None:
        """A child ends, and its own with it: what the gateway says of each is remembered."""
        if not (name or self.children()):
            return
        name = name or self.luck.choice(self.children())
        for other in [one for one in self.fleet if one == name or one.startswith(f"{name}~")]:
            allowed = self.fleet[other].budget.tokens
            used = self.used.get((other, allowed.window, period_of(allowed.window, self.now)), 0)
            self.past[other] = self.module.Past(used, self.now, allowed.window)
        for other in [one for one in self.fleet if one == name or one.startswith(f"{name}~")]:
            del self.fleet[other]
        self.past = self.module.fold(self.past, self.fleet, self.now, 3)

    def crash(self) -> None:
        for name in [name for name in self.children() if name.count("~") == 1]:
            self.end(name)

    def restart(self) -> None:
        """The daemon comes back and knows what was written down."""
        written = json.dumps({name: unit.model_dump(mode="json") for name, unit in self.fleet.items()})
        self.fleet = {name: Unit.model_validate(blob) for name, blob in json.loads(written).items()}
        rows = json.loads(json.dumps({name: list(astuple(one)) for name, one in self.past.items()}))
        self.past = {name: self.module.Past(*row) for name, row in rows.items()}

    def time(self) -> None:
        self.now += self.luck.choice((1.0, 30.0, 70.0, 4000.0, 4000.0, 50_000.0))

    def check(self) -> None:
        for name, unit in self.fleet.items():
            grant = unit.agent.may_spawn
            below = [other for key, other in self.fleet.items() if key.startswith(f"{name}~")]
            assert grant is not None or not below
            if grant is None:
                continue
            assert len(below) <= grant.number
            assert all(other.name.count("~") - name.count("~") <= grant.depth for other in below)
            for key, least in (("memory", 0), ("cpu", 0.01), ("pids", 0)):
                if (bound := getattr(grant, key)) is not None:
                    assert sum(max(least, getattr(other.limits, key)) for other in below) <= bound + 1e-6
            if name == "boss":
                self.check_tokens(unit, grant)

    def check_tokens(self, unit: Unit, grant: Grant) -> None:
        """What was really spent in each window that ever was."""
        granted = grant.tokens or unit.budget.tokens
        sums: dict[int, int] = {}
        for at, _, tokens in self.spent:
            period = period_of(granted.window, at)
            sums[period] = sums.get(period, 0) + tokens
        assert all(tokens <= granted.amount for tokens in sums.values()), (granted, sums)


def run(module: ModuleType, seeds: range, length: int = 60) -> None:
    for seed in seeds:
        world = World(module, random.Random(seed))
        for _ in range(length):
            world.act()


def test_no_history_gets_more_than_was_granted() -> None:
    """Number, depth and sums hold after each step; what is really spent stays within the tokens of every window."""
    run(offspring, range(400))


MUTANTS = (
    ("number is one too many", "if there >= grant.number:", "if there > grant.number:"),
    ("number is of children only", "return name.startswith(ancestor + MARK)", "return parent_of(name) == ancestor"),
    ("only the parent's own sums are kept", "for name in line if (bound :=", "for name in line[:1] if (bound :="),
    ("sums forget the newcomer", "if used + _charge(key, value) > bound + 1e-9:", "if used > bound + 1e-9:"),
    ("a tiny cpu limit counts as what it says", "return max(LEAST_CPU, value) if", "return value if"),
    ("what was spent is forgotten with its child", "    return gone.tokens", "    return 0"),
    ("an hour's allowance fits into a day's", "return WINDOWS.index(one.window) < WINDOWS.index(other.window)",
     "return False"),
    ("another window of the same name is fresh", "if gone is not None and gone.window != mine.window and",
     "if False and gone is not None and"),
    ("folding loses what was spent", "Past(before.tokens + gone.tokens,", "Past(gone.tokens,"),
    ("a share is no share", "shares = [allowance(fleet[name]).amount // grant_of(fleet[name]).number for name in line]",
     "shares = [allowance(fleet[name]).amount for name in line]"),
)  # fmt: skip


def load(old: str, new: str) -> ModuleType:
    """A copy of the module with this bug."""
    source = SOURCE.read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times"
    module = ModuleType("agentd.model.offspring_mutant")
    sys.modules[module.__name__] = module
    try:
        exec(compile(source.replace(old, new), "offspring.py (mutant)", "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return module


@pytest.mark.parametrize(("bug", "old", "new"), MUTANTS, ids=[bug for bug, _, _ in MUTANTS])
def test_each_planted_bug_breaks_it(bug: str, old: str, new: str) -> None:
    """The check of histories notices each of them, or the even shares do not fit any more."""
    module = load(old, new)

    def judged() -> None:
        run(module, range(400))
        fits(module)

    with pytest.raises((AssertionError, AgentdError, RecursionError)):
        judged()


def fits(module: ModuleType) -> None:
    """As many as were granted that name nothing fit, and not one more."""
    unit = root('number = 7, memory = "1G", cpu = 1, pids = 100, tokens = "100k/day"')
    fleet = {"boss": unit}
    for number in range(7):
        made = module.admit("boss", f"c{number}", CHILD, fleet, {}, "cgroup", 0.0)
        fleet[made.name] = made
    with pytest.raises(OverBudget):
        module.admit("boss", "c7", CHILD, fleet, {}, "cgroup", 0.0)


def test_as_many_as_granted_fit_where_none_names_anything() -> None:
    """An even share each, whatever the order, never more than a unit has that names none."""
    fits(offspring)
    one = child(root('number = 2, memory = "64G", cpu = 8, pids = 4000, tokens = "50M/day"'))
    assert (one.limits.memory, one.limits.pids, one.budget.tokens.amount) == (2 << 30, 512, 2_000_000)
    assert one.limits.cpu == 4


# --- no more than the parent ------------------------------------------------------------------------------------------


def test_every_setting_that_a_child_may_not_say_is_refused() -> None:
    """Whatever stands in the table of settings and not in MAY, of today or of tomorrow."""
    some: Json = {"tuple": ["x"], "str": "x", "bool": True, "int": 1, "float": 1, "dict": {"A": "b"}}
    refused = 0
    for section in reading.SECTIONS:  # type: ignore[attr-defined]
        for key in reading._fields(section):
            if key not in offspring.MAY.get(section, ()):
                for value in some.values():
                    tables = {"agent": {"exec": ["x"]}} | {section: {"exec": ["x"], key: value}}
                    if section != "agent":
                        tables[section].pop("exec")
                    with pytest.raises(Denied, match=key):
                        offspring.admit("boss", "c", tables, {"boss": root()}, {}, "cgroup", 0.0)
                refused += 1
    assert refused >= 6  # env_file, after, requires, binds_to, strategy, probe
    assert "env_file" in Agent.model_fields


@pytest.mark.parametrize(
    ("parent", "spec"),
    [
        ("", {"agent": {"allow_root": True}}),
        ("", {"agent": {"user": "root"}}),
        ('user = "alice"', {"agent": {"user": "bob"}}),
        ("", {"isolation": {"level": "none"}}),
        ("", {"isolation": {"level": "rlimit"}}),
        ("", {"limits": {"memory": "3G"}}),
        ("", {"limits": {"pids": 513}}),
        ("[limits]\nopen_files = 64", {"limits": {"open_files": 65}}),
        ("", {"limits": {"open_files": 1_000_000}}),
        ("[limits]\ncpu = 1", {"limits": {"cpu": 2}}),
        ("", {"agent": {"stop_timeout": "1h"}}),
        ("", {"restart": {"delay": "0s"}}),
        ("", {"restart": {"healthy_after": "0s"}}),
        ("", {"restart": {"burst": 1000}}),
        ("", {"bus": {"inbox_max": 10_001}}),
        ("", {"liveness": {"heartbeat": "1ms"}}),
        ('[bus]\nmay_send = ["a"]', {"bus": {"may_send": ["b"]}}),
        ("", {"agent": {"may_spawn": {"number": 1}}}),
        ("", {"budget": {"tokens": "1k/hour"}}),
    ],
)
def test_a_child_has_nothing_that_its_parent_has_not(parent: str, spec: Json) -> None:
    """Each is more than the parent has, and refused as that."""
    with pytest.raises(Denied):
        child(root("number = 3", parent), **spec)


def test_what_a_child_leaves_open_is_no_more_than_its_parents() -> None:
    """Limits, restarts, users and receivers of the parent bound the defaults too."""
    text = """user = "alice"
[limits]
memory = "100M"
open_files = 99
[restart]
delay = "5s"
burst = 2
[bus]
may_send = ["a"]
[isolation]
level = "cgroup"
"""
    made = child(root("number = 3", text))
    assert (made.limits.memory, made.limits.open_files) == (100 << 20, 99)
    assert (made.restart.delay, made.restart.burst) == (5.0, 2)
    assert made.bus.may_send == ("a", "boss")
    assert (made.agent.user, made.isolation.level) == ("alice", "cgroup")
    assert made.agent.requires == ("boss",)
    assert child(root("number = 3", 'user = "root"\nallow_root = true')).agent.user is None
    assert child(root("number = 3", 'user = "root"\nallow_root = true'), agent={"user": "root"}).agent.user == "root"


def test_a_grandchild_stays_within_every_grant_above_it() -> None:
    """The grant of a child lies within its parent's, and the sums of all ancestors hold."""
    boss = root('number = 3, depth = 2, memory = "1G", tokens = "90k/day"')
    lead = child(boss, agent={"may_spawn": {"number": 3, "memory": "1G"}}, limits={"memory": "600M"})
    fleet = {"boss": boss, lead.name: lead}
    with pytest.raises(OverBudget, match="boss"):
        offspring.admit(lead.name, "d", CHILD | {"limits": {"memory": "500M"}}, fleet, {}, "cgroup", 0.0)
    made = offspring.admit(lead.name, "d", CHILD | {"limits": {"memory": "400M"}}, fleet, {}, "cgroup", 0.0)
    assert made.name == "boss~c~d"
    with pytest.raises(Denied):
        child(boss, agent={"may_spawn": {"number": 4}})
    with pytest.raises(Denied):
        child(boss, agent={"may_spawn": {"number": 1, "depth": 2}})
    with pytest.raises(Denied):
        child(boss, agent={"may_spawn": {"number": 1, "cpu": 1}})


def test_names_say_whose_child_it_is_and_nothing_else_can_have_them() -> None:
    """No unit file and no other parent can make the name of a child."""
    full = offspring.full_name("boss@2", "scout")
    assert full == "boss@2~scout"
    assert offspring.is_name(full)
    assert offspring.parent_of(full) == "boss@2"
    assert reading.problems('[agent]\nexec = ["x"]\n', full)
    assert not offspring.descends("boss2~c", "boss")
    assert not offspring.descends("boss", "boss")
    wrong: tuple[Any, ...] = ("", "a~b", "A", ".", "..", "a/b", "a b", "a@b", "x" * 64, None, 3, [], "é")
    for name in wrong:
        with pytest.raises(BadInput):
            offspring.full_name("boss", name)
    with pytest.raises(BadInput):
        offspring.full_name("x" * 63 + "~" + "y" * 60, "zzzz")
    for left, right in itertools.permutations(("boss", "boss~a", "boss~a~b", "bos"), 2):
        assert offspring.full_name(left, "c") != offspring.full_name(right, "c")


def test_a_grant_that_makes_no_sense_is_refused_in_words() -> None:
    """The key and what is wrong with it, not a riddle about exec."""
    for text, words in (
        ('may_spawn = { memory = "1G" }', "number: missing"),
        ("may_spawn = { number = 0 }", "at least 1"),
        ("may_spawn = { number = 1, depht = 2 }", "depht"),
        ("may_spawn = 3", "table"),
    ):
        problem = reading.problems(f'[agent]\nexec = ["x"]\n{text}\n', "boss")[0]
        assert words in problem.message, problem.message
        assert problem.line == 3
