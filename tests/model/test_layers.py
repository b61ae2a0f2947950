"""Which files make a unit, and what they say together: merging, expansion, and errors that name the right file."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from agentd.model import fileset, layers, template
from agentd.model.fileset import Fileset
from agentd.model.layers import Layer
from agentd.model.reading import parse
from agentd.model.unit import Unit

AGENT = '[agent]\nexec = ["x"]\n'


def made(files: dict[str, str], wanted: tuple[str, ...] = ()) -> fileset.Units:
    """What these files in /u give."""
    found = Fileset()
    for path, text in files.items():
        found.put(f"/u/{path}", text)
    return fileset.read(found, wanted)


def only(files: dict[str, str], name: str) -> Unit:
    """The one unit, of which nothing is wrong."""
    found = made(files)
    assert [str(problem) for _, problem in found.problems] == []
    return found.units[name]


# --- laws -------------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, list[Any]]] = {
    "agent": {
        "description": ["a", "50 %", "b %i"],
        "after": [[], ["a"], ["a", "b"]],
        "env": [{}, {"A": "1"}, {"A": "2", "B": "3"}, {"C": "%"}],
        "stop_timeout": ["1s", 2.5],
    },
    "restart": {"burst": [1, 5], "success": [[75], ["SIGUSR1", 3]]},
    "limits": {"memory": ["1G", "2G"]},
    "bus": {"backoff": [[1, 2], []]},
}


def some(random_: random.Random) -> dict[str, dict[str, Any]]:
    """The tables of a file."""
    tables: dict[str, dict[str, Any]] = {}
    for section, keys in SETTINGS.items():
        for key, values in keys.items():
            if random_.random() < 0.5:
                tables.setdefault(section, {})[key] = random_.choice(values)
    return tables


def toml(tables: dict[str, dict[str, Any]]) -> str:
    """The same as a file."""

    def value(of: Any) -> str:
        if isinstance(of, dict):
            return "{ " + ", ".join(f"{key} = {json.dumps(item)}" for key, item in of.items()) + " }"
        return json.dumps(of)

    return "\n".join(
        line
        for section, table in tables.items()
        for line in (f"[{section}]", *(f"{key} = {value(of)}" for key, of in table.items()))
    )


@pytest.mark.parametrize("seed", range(60))
def test_dropins_merge_setting_by_setting(seed: int) -> None:
    """The last file that says a setting has the word, whatever the others say; merging is associative, an empty one
    changes nothing, and each setting's origin is the file that said it last."""
    random_ = random.Random(seed)
    tables = [some(random_) for _ in range(4)]
    tables[0].setdefault("agent", {})["exec"] = ["x"]
    names = ["a.toml", "a.toml.d/1.toml", "a.toml.d/2.toml", "a.toml.d/3.toml"]
    files = {name: toml(table) for name, table in zip(names, tables, strict=True)}
    shuffled = random_.sample(sorted(files), 4)
    unit = only({name: files[name] for name in shuffled}, "a")
    one, two, three, four = tables
    merged = layers.merge(layers.merge(layers.merge(one, two), three), four)
    assert merged == layers.merge(layers.merge(one, two), layers.merge(three, four))
    assert merged == layers.merge(merged, {}) == layers.merge({}, merged)
    assert unit.means_the_same(parse(toml(merged), "a", "/u/a.toml"))
    for section, table in merged.items():
        for key, value in table.items():
            said = [f"/u/{name}" for name, table in zip(names, tables, strict=True) if key in table.get(section, {})]
            assert unit.origin(section, key) == said[-1]
            if key == "env":
                assert value == {k: v for t in tables for k, v in t.get(section, {}).get(key, {}).items()}
            else:
                assert value == [t[section][key] for t in tables if key in t.get(section, {})][-1]


@pytest.mark.parametrize("seed", range(60))
def test_expansion_replaces_what_is_meant_and_nothing_else(seed: int) -> None:
    """Escaping a text and expanding it gives the text again; the instance stands where %i stood, at any depth; keys,
    numbers and the rest stay."""
    random_ = random.Random(seed)
    plain = ["".join(random_.choices("%i%a ", k=random_.randrange(8))) for _ in range(3)]
    escaped = [text.replace("%", "%%") for text in plain]
    data = {"agent": {"a": escaped[0], "%i": [escaped[1], {"b": escaped[2] + "%i"}], "n": 5, "t": True}}
    expanded, unknown = template.expand(data, "eu-1")
    assert expanded == {"agent": {"a": plain[0], "%i": [plain[1], {"b": plain[2] + "eu-1"}], "n": 5, "t": True}}
    assert unknown == []


@pytest.mark.parametrize("seed", range(60))
def test_an_unknown_specifier_is_never_passed_over(seed: int) -> None:
    """Whatever stands around it: each one is told, with the setting that it stands in."""
    random_ = random.Random(seed)
    around = ["".join(random_.choices(["%%", "%i", "a", " "], k=random_.randrange(5))) for _ in range(2)]
    wrong = random_.choice(["%d", "%I", "%n", "% ", "%é", "%\n"])
    _, unknown = template.expand({"agent": {"env": {"A": f"{around[0]}{wrong}{around[1]}"}}}, "1")
    assert unknown == [(("agent", "env", "A"), wrong)]


# --- which files make which unit --------------------------------------------------------------------------------------


def test_the_order_of_a_units_files() -> None:
    """Template or own file, then the template's drop-ins by name, then the instance's own."""
    files = Fileset()
    for name in ("c@2.toml.d/a", "c@.toml.d/z", "c@.toml.d/b", "c@", "c@3", "c@3.toml.d/a", "c"):
        files.put(f"/u/{name}.toml", "")
    order = {
        name: [layer.file.removeprefix("/u/") for layer in files.layers(name)] for name in ("c@1", "c@2", "c@3", "c")
    }
    above = ["c@.toml.d/b.toml", "c@.toml.d/z.toml"]
    assert order == {
        "c@1": ["c@.toml", *above],
        "c@2": ["c@.toml", *above, "c@2.toml.d/a.toml"],
        "c@3": ["c@3.toml", *above, "c@3.toml.d/a.toml"],
        "c": ["c.toml"],
    }
    assert files.layers("d@1") == files.layers("d") == []


def test_who_there_is() -> None:
    """Replicas by number, those with a file, those asked for; no unit of the template's own name."""
    found = made({"c@.toml": AGENT + "replicas = 2\n", "c@x.toml": AGENT, "p.toml": AGENT}, ("c@eu", "d@1"))
    assert sorted(found.units) == ["c@1", "c@2", "c@eu", "c@x", "p"]
    assert found.replicas == {"c@": 2}
    assert template.instances("c@", [*found.units, "c@10", "c@9"]) == ["c@1", "c@2", "c@9", "c@10", "c@eu", "c@x"]
    assert made({"c@.toml": AGENT, "c@.toml.d/n.toml": "[agent]\nreplicas = 1\n"}).units.keys() == {"c@1"}


def test_the_number_of_replicas_is_no_part_of_the_instances() -> None:
    """Or raising it would restart them all."""
    two, three = (only({"c@.toml": AGENT + f"replicas = {n}\n"}, "c@1") for n in (2, 3))
    assert two == three


def test_relative_paths_start_where_they_stand() -> None:
    """In the unit file as before; in a drop-in at the drop-in's directory."""
    text = AGENT + 'workdir = "w"\nenv_file = "e"\n'
    unit = only({"a.toml": text, "a.toml.d/1.toml": '[agent]\nworkdir = "../x"\n'}, "a")
    assert (unit.agent.workdir, unit.agent.env_file) == ("/u/x", "e")
    unit = only({"a@.toml": text + "replicas = 1\n", "a@.toml.d/1.toml": '[agent]\nenv_file = "%i.env"\n'}, "a@1")
    assert (unit.agent.workdir, unit.agent.env_file) == ("w", "/u/a@.toml.d/1.env")


def test_percent_signs_belong_to_templates_only() -> None:
    """An instance's own file and drop-ins keep them, as plain units do."""
    files = {"c@.toml": AGENT + "replicas = 1\n", "c@1.toml.d/1.toml": '[agent]\ndescription = "%i %d"\n'}
    assert only(files, "c@1").agent.description == "%i %d"


ERRORS = {
    "a drop-in's own line": (
        {"a.toml": AGENT, "a.toml.d/1.toml": "[limits]\n\nmemory = 'lots'\n"},
        ["/u/a.toml.d/1.toml:3: [limits] memory: 'lots' is not a size; "],
    ),
    "a mistake that another file makes good is one": (
        {"a.toml": AGENT + "[restart]\nburst = 0\n", "a.toml.d/1.toml": "[restart]\nburst = 3\n"},
        ["/u/a.toml:4: [restart] burst: 0 is too small, at least 1."],
    ),
    "what no file says": (
        {"a.toml": "[restart]\nburst = 1\n", "a.toml.d/1.toml": "[limits]\npids = 3\n"},
        ["/u/a.toml: [agent] exec: missing. Say what to run,"],
    ),
    "a template's mistake is told once": (
        {"c@.toml": AGENT + "replicas = 3\nstop_timeout = 'x'\n", "c@1.toml.d/1.toml": ""},
        ["/u/c@.toml:4: [agent] stop_timeout: 'x' is not a duration; "],
    ),
    "an instance's mistake is its own": (
        {"c@.toml": AGENT + "replicas = 2\n", "c@2.toml.d/1.toml": "[agent]\nreplicas = 3\n"},
        ["/u/c@2.toml.d/1.toml:2: [agent] replicas: only a template has replicas, and an instance is none."],
    ),
}


@pytest.mark.parametrize("title", ERRORS)
def test_errors_name_the_file_in_which_they_stand(title: str) -> None:
    """File, line, key and what is wrong; and once."""
    files, expected = ERRORS[title]
    for (_, problem), beginning in zip(made(files).problems, expected, strict=True):
        assert str(problem)[: len(beginning)] == beginning


def test_what_is_wrong_with_one_instance_leaves_the_others() -> None:
    """Broken are: the instance with a broken drop-in; all that a broken template would make; nobody else."""
    found = made({"c@.toml": AGENT + "replicas = 2\n", "c@2.toml.d/1.toml": "x", "d.toml": AGENT})
    assert (set(found.units), found.broken) == ({"c@1", "d"}, {"c@2"})
    found = made({"c@.toml": "x", "c@3.toml": AGENT, "d.toml": AGENT}, ("c@eu",))
    assert (set(found.units), found.broken) == ({"c@3", "d"}, {"c@", "c@eu"})


def test_a_dropin_that_belongs_to_nobody_is_noticed() -> None:
    """Unless a template could make the instance that it is for."""
    files = {
        "c@.toml": AGENT,
        "c@7.toml.d/1.toml": "",
        "d.toml.d/1.toml": "",
        "e@.toml.d/1.toml": "",
        "e@1.toml": AGENT,
    }
    found = made(files)
    assert {owner: layer.file for owner, layer in found.lonely.items()} == {"d": "/u/d.toml.d/1.toml"}


def test_what_is_brought_goes_over_what_is_there() -> None:
    """By the place that a file would take: a drop-in of the same name is replaced, the others stay in force."""
    there, given = Fileset(), Fileset()
    for name in ("a", "a.toml.d/1", "a.toml.d/2", "b"):
        there.put(f"/u/{name}.toml", "old")
    for name in ("a.toml.d/2", "a.toml.d/3"):
        assert given.put(f"/new/{name}.toml", "new") == Layer(f"/new/{name}.toml", "new")
    view = given.over(there)
    assert [(layer.file, layer.text) for layer in view.layers("a")] == [
        ("/u/a.toml", "old"),
        ("/u/a.toml.d/1.toml", "old"),
        ("/new/a.toml.d/2.toml", "new"),
        ("/new/a.toml.d/3.toml", "new"),
    ]
    assert view.layers("b") == there.layers("b")


def test_two_units_mean_the_same_wherever_it_is_said() -> None:
    """What counts for a restart is what runs, not which file says so."""
    one = only({"a.toml": AGENT + "[limits]\npids = 3\n"}, "a")
    two = only({"a.toml": AGENT, "a.toml.d/1.toml": "[limits]\npids = 3\n"}, "a")
    other = only({"a.toml": AGENT, "a.toml.d/1.toml": "[limits]\npids = 4\n"}, "a")
    assert one != two
    assert one.means_the_same(two)
    assert not one.means_the_same(other)
    assert not one.means_the_same(one.model_copy(update={"file": "/v/a.toml"}))  # relative paths would start there
    assert Unit.model_validate(json.loads(two.model_dump_json())) == two
