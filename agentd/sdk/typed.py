"""From JSON to what a handler's annotation asks for, and back. Pure: knows no message, no handler, no channel.

An annotation is compiled once, when the handler is registered: one that cannot be checked is an error there, not
at the first message. Pydantic models check themselves; this file never imports pydantic.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

Convert = Callable[[Any, str], Any]
"""``convert(value, where)`` returns the checked value or raises Mismatch."""

WORDS: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "an array",
    types.NoneType: "null",
}

MARKS = (typing.Required, typing.NotRequired)


class Mismatch(ValueError):
    """A value is not of the type that was asked for; the text says where and why."""


def converter(hint: Any) -> Convert:
    """Compile an annotation. Raises TypeError for one that this file cannot check."""
    hint = types.NoneType if hint is None else hint
    if hint is Any or hint is object:
        return lambda value, where: value
    if hasattr(hint, "model_validate"):
        return _model(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass(hint)
    if typing.is_typeddict(hint):
        return _typed_dict(hint)
    if hint in WORDS:
        return _plain(hint)
    return _generic(hint)


def to_json(value: Any) -> Any:
    """A handler's result or a message to send, as plain JSON values. Raises TypeError if it cannot be."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise TypeError(str(error)) from error
    return value


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _plain(kind: type) -> Convert:
    def convert(value: Any, where: str) -> Any:
        if not _is(value, kind):
            raise Mismatch(f"{where}: expected {WORDS[kind]}, got {_show(value)}")
        return float(value) if kind is float else value

    return convert


def _generic(hint: Any) -> Convert:
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return converter(args[0])
    if origin in (Union, types.UnionType):
        return _union([converter(arg) for arg in args])
    if origin is Literal:
        return _literal(args)
    if origin is list:
        return _list(converter(args[0]))
    if origin is dict and args[0] is str:
        return _mapping(converter(args[1]))
    raise TypeError(
        f"messages cannot be checked against {hint!r}: use a pydantic model, a dataclass, a TypedDict, dict, list, "
        f"str, int, float, bool, or no annotation"
    )


def _union(choices: list[Convert]) -> Convert:
    def convert(value: Any, where: str) -> Any:
        reasons = []
        for choice in choices:
            try:
                return choice(value, where)
            except Mismatch as error:
                reasons.append(str(error))
        raise Mismatch(" or ".join(reasons))

    return convert


def _literal(values: tuple[Any, ...]) -> Convert:
    def convert(value: Any, where: str) -> Any:
        if not any(value == one and type(value) is type(one) for one in values):
            raise Mismatch(f"{where}: expected one of {', '.join(map(_show, values))}, got {_show(value)}")
        return value

    return convert


def _list(item: Convert) -> Convert:
    plain = _plain(list)
    return lambda value, where: [item(one, f"{where}[{i}]") for i, one in enumerate(plain(value, where))]


def _mapping(item: Convert) -> Convert:
    plain = _plain(dict)
    return lambda value, where: {key: item(one, f"{where}.{key}") for key, one in plain(value, where).items()}


def _fields(hints: dict[str, Any], required: set[str]) -> Convert:
    """An object with known fields; unknown ones are ignored, so that senders may grow first."""
    items = {name: converter(hint) for name, hint in hints.items()}
    plain = _plain(dict)

    def convert(value: Any, where: str) -> dict[str, Any]:
        plain(value, where)
        if missing := sorted(required - value.keys()):
            raise Mismatch(f"{where}: missing {', '.join(missing)}")
        return {name: items[name](value[name], f"{where}.{name}") for name in items if name in value}

    return convert


def _dataclass(cls: Any) -> Convert:
    hints = typing.get_type_hints(cls)
    own = [field for field in dataclasses.fields(cls) if field.init]
    no_default = dataclasses.MISSING
    required = {f.name for f in own if f.default is no_default and f.default_factory is no_default}
    convert = _fields({f.name: hints[f.name] for f in own}, required)

    def build(value: Any, where: str) -> Any:
        try:
            return cls(**convert(value, where))
        except Mismatch:
            raise
        except ValueError as error:  # from its __post_init__
            raise Mismatch(f"{where}: {error}") from error

    return build


def _typed_dict(cls: Any) -> Convert:
    hints = typing.get_type_hints(cls, include_extras=True)
    marks = {name: get_origin(hint) for name, hint in hints.items()}
    plain = {name: get_args(hint)[0] if marks[name] in MARKS else hint for name, hint in hints.items()}
    # __required_keys__ cannot see a mark in an annotation that is still a string
    required = {name for name in cls.__required_keys__ if marks[name] is not typing.NotRequired}
    return _fields(plain, required)


def _model(cls: Any) -> Convert:
    def convert(value: Any, where: str) -> Any:
        try:
            return cls.model_validate(value)
        except ValueError as error:
            raise Mismatch(_pydantic_reason(error, where)) from error

    return convert


def _pydantic_reason(error: ValueError, where: str) -> str:
    details: Any = getattr(error, "errors", None)
    if details is None:
        return f"{where}: {error}"
    return "; ".join(f"{'.'.join(map(str, (where, *item['loc'])))}: {item['msg']}" for item in details())


def _show(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
