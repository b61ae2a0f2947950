"""Checking of JSON against annotations: pure."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from pydantic import BaseModel

from agentd.sdk import Agent, Context
from agentd.sdk.typed import Mismatch, converter, to_json

ROOT = Path(__file__).parents[2]


@dataclass
class Leg:
    name: str
    length: float = 1.0


@dataclass
class Animal:
    legs: list[Leg]
    mood: Literal["calm", "wild"] = "calm"
    tags: dict[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.legs) > 4:
            raise ValueError("too many legs")


class Options(TypedDict):
    deep: bool
    name: NotRequired[str]


class Model(BaseModel):
    n: int


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (Any, object, object),
        (None, None, None),
        (str, "a", "a"),
        (float, 2, 2.0),
        (int | None, None, None),
        (Annotated[int, "unit"], 3, 3),
        (list[int], [1, 2], [1, 2]),
        (Options, {"deep": True, "more": 1}, {"deep": True}),
        (Model, {"n": "4"}, Model(n=4)),
        (Leg, {"name": "left", "length": 2}, Leg("left", 2.0)),
        (
            Animal,
            {"legs": [{"name": "left"}], "tags": {"a": None}, "unknown": 1},
            Animal([Leg("left")], tags={"a": None}),
        ),
    ],
)
def test_values_are_built(hint: Any, value: Any, expected: Any) -> None:
    """JSON becomes what the annotation says, nested; fields that are not known are left out."""
    assert converter(hint)(value, "data") == expected


@pytest.mark.parametrize(
    ("hint", "value", "reason"),
    [
        (int, True, "data: expected an integer, got true"),
        (int, 1.5, "data: expected an integer, got 1.5"),
        (str, None, "data: expected a string, got null"),
        (int | str, [], "data: expected an integer, got [] or data: expected a string, got []"),
        (list[int], [1, "2"], 'data[1]: expected an integer, got "2"'),
        (Options, {"name": "x"}, "data: missing deep"),
        (Leg, "left", 'data: expected an object, got "left"'),
        (Animal, {"legs": [{}]}, "data.legs[0]: missing name"),
        (Animal, {"legs": [], "mood": "sad"}, 'data.mood: expected one of "calm", "wild", got "sad"'),
        (Animal, {"legs": [{"name": "x"}] * 5}, "data: too many legs"),
        (Model, {}, "data.n: Field required"),
        (str, ["x" * 100], 'data: expected a string, got ["' + "x" * 55 + "..."),
    ],
)
def test_reasons_name_place_and_value(hint: Any, value: Any, reason: str) -> None:
    """A mismatch says where in the data, what was expected and what was there."""
    with pytest.raises(Mismatch) as caught:
        converter(hint)(value, "data")
    assert str(caught.value) == reason


def test_annotations_that_cannot_be_checked_are_errors_at_registration() -> None:
    """Not at the first message: the author sees it when the program starts."""
    app = Agent()
    with pytest.raises(TypeError, match="cannot be checked against set"):

        @app.on("x")
        async def one(ctx: Context, data: set[int]) -> None: ...

    with pytest.raises(TypeError, match=r"a handler takes \(ctx, data\)"):

        @app.on("y")
        async def two(ctx: Context) -> None: ...


def test_a_kind_has_one_handler() -> None:
    """Two handlers of one kind are a mistake that is told."""
    app = Agent()

    @app.on("x")
    async def one(ctx: Context, data: Any) -> None: ...

    with pytest.raises(ValueError, match="two handlers for the kind 'x'"):
        app.on("x")(one)


def test_results_become_json() -> None:
    """Models and dataclasses as objects; what JSON has no word for is a TypeError."""
    assert to_json(Model(n=1)) == {"n": 1}
    assert to_json([1, None, "x"]) == [1, None, "x"]
    assert to_json(Leg("l"))["length"] == 1.0
    for value in ({1}, float("nan"), object()):
        with pytest.raises(TypeError):
            to_json(value)


def test_import_is_light() -> None:
    """Importing the SDK loads nothing beyond the standard library, and none of its heavy parts."""
    code = (
        "import asyncio, sys; before = set(sys.modules); import agentd.sdk;"
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["agentd"]
